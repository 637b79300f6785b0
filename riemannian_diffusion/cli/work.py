"""The folder of `--keep`: keyframes, solves and paths, and the settings that they depend on."""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from riemannian_diffusion.cli.inputs import Inputs
from riemannian_diffusion.files import write_atomically
from riemannian_diffusion.pairs.folder import typed
from riemannian_diffusion.pipelines import Keyframes, MorphPath
from riemannian_diffusion.pipelines.unused import CURVE_NAMES

T = TypeVar("T")

KEYFRAMES = (  # options on which the keyframes depend, beside the images, the model and its dtype
    *("size", "prompt", "negative_prompt", "space", "strength", "steps", "spacing"),
    *("guidance", "guidance_damping", "seed", "adapt"),
)
MODEL = ("config", "variant", "vae", "lora", "ip_adapter", "ip_adapter_image")  # and paths of files
SOLVE = (
    "max_evals",
    "rtol",
    "adain",
)  # options on which the path depends, beside frames and starts


class Work:
    """The work that one folder keeps; without a folder, nothing is kept and nothing is found.

    A path and a checkpoint in the folder always belong to the settings beside them: those of other
    settings are deleted before the settings are written. Nothing is written before `begin`.

    Args:
        folder: The folder of `--keep`, or None.
        settings: What the keyframes depend on, by flag.
        force: Delete work with other settings.

    Raises:
        ValueError: If the folder holds work with other settings.
    """

    def __init__(self, folder: Path | None, settings: dict[str, Any], *, force: bool):
        self.folder = folder
        self._kept: dict[str, Any] = {"keyframes": settings, "solves": {}}
        self._made: dict[str, Keyframes | MorphPath] = {}  # what was made without a folder
        self._anew = True  # nothing in the folder is of use
        if folder is None:
            return
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--keep must name a folder, but {folder} is a file.")
        if not (folder / "keys.safetensors").exists():
            return
        problem, solves = self._compare()
        if problem is None:
            self._anew, self._kept["solves"] = False, solves
        elif not force:
            raise ValueError(
                f"--keep {folder} {problem}: choose another folder, or start anew with --force."
            )

    def begin(self, metric: str, options: dict[str, Any]) -> None:
        """Begin a solve, or resume it: what was kept with other settings is deleted.

        Args:
            metric: The name of the metric or curve.
            options: What the path depends on, beside the keyframes.

        Raises:
            OSError: If the folder cannot be made or written to.
        """
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise OSError(f"--keep {self.folder} cannot be made or written to: {error}") from error
        old: tuple[str, ...] = ()
        if self._anew:
            old = ("keys.safetensors", *(f"{n}-*.safetensors" for n in ("path", "bridge", "solve")))
        elif self._kept["solves"].get(metric) != options:
            old = tuple(f"{n}-{metric}*.safetensors" for n in ("path", "bridge", "solve"))
        for pattern in old:
            for file in self.folder.glob(pattern):
                file.unlink()
        self._kept["solves"][metric], self._anew = options, False
        text = json.dumps(self._kept, indent=2) + "\n"
        write_atomically(self.folder / "settings.json", lambda file: file.write_text(text))

    def keyframes(self) -> Keyframes | None:
        """The keyframes, if they were kept; call `begin` first."""
        return self._load("keys.safetensors", Keyframes.load)

    def path(self, metric: str) -> MorphPath | None:
        """The path of a metric, if it was kept; call `begin` first."""
        return self._load(f"path-{metric}.safetensors", MorphPath.load)

    def bridge(self, metric: str) -> MorphPath | None:
        """The path to the image of `--analogy`, if it was kept; call `begin` first."""
        return self._load(f"bridge-{metric}.safetensors", MorphPath.load)

    def checkpoint(self, metric: str) -> Path | None:
        """The file for the state of a solve, None for a curve; call `begin` first."""
        if self.folder is None or metric in CURVE_NAMES:
            return None
        return self.folder / f"solve-{metric}.safetensors"

    def keep(self, made: Keyframes | MorphPath, kind: str = "path") -> None:
        """Write keyframes or a path; without a folder, remember them for `keep_in`.

        Args:
            made: The keyframes or the path.
            kind: "path", or "bridge" for the path to the image of `--analogy`.
        """
        name = "keys" if isinstance(made, Keyframes) else f"{kind}-{made.metric}"
        if self.folder is None:
            self._made[name] = made
        else:
            made.save(self.folder / f"{name}.safetensors")

    def keep_in(self, folder: Path, metric: str, options: dict[str, Any]) -> None:
        """Write everything that was made without a folder to a new one, as with `--keep`.

        Args:
            folder: The folder.
            metric: See `begin`.
            options: See `begin`.
        """
        self.folder = folder
        self.begin(metric, options)
        for name, made in self._made.items():
            made.save(folder / f"{name}.safetensors")

    def _load(self, name: str, load: Callable[[Path], T]) -> T | None:
        if self.folder is None or not (self.folder / name).exists():
            return None
        try:
            return load(self.folder / name)
        except ValueError as error:
            raise ValueError(f"{error} Delete {self.folder / name} and run this again.") from error

    def _compare(self) -> tuple[str | None, dict[str, Any]]:
        """In words, what forbids to go on with the folder's work, or None; its solves' options."""
        assert self.folder is not None
        file = self.folder / "settings.json"
        if not file.exists():
            return "holds keys.safetensors, but no settings.json", {}
        try:
            found = json.loads(file.read_text())
            before, solves = dict(found["keyframes"]), dict(found["solves"])
        except (ValueError, KeyError, TypeError):
            return "holds a damaged settings.json", {}
        for flag, value in self._kept["keyframes"].items():
            if before.get(flag) != value:
                if flag == "images":
                    return "holds work with other images", {}
                old, new = typed(flag, before.get(flag)), typed(flag, value)
                return f"holds work with {old}, not with {new}", {}
        return None, solves


def keyframe_settings(args: argparse.Namespace, inputs: Inputs, dtype: str) -> dict[str, Any]:
    """The settings on which the keyframes depend, by flag; a hash for each image.

    Args:
        args: The command line.
        inputs: Its images.
        dtype: The name of the networks' dtype.
    """
    model = args.model or "shipped"
    model = absolute(Path(model)) if Path(model).exists() else model
    settings = {"--model": model, "--dtype": dtype}
    settings |= {f"--{name.replace('_', '-')}": getattr(args, name) for name in KEYFRAMES}
    settings |= {f"--{name.replace('_', '-')}": absolute(getattr(args, name)) for name in MODEL}
    fitted = [] if args.adapt is None or inputs.third is None else [inputs.third]
    return plain(settings | {"images": [hash_of(image) for image in [*inputs.images, *fitted]]})


def solve_options(args: argparse.Namespace, inputs: Inputs, device: object) -> dict[str, Any]:
    """The options on which a path depends beside its keyframes, by flag; a hash for each image.

    Args:
        args: The command line.
        inputs: Its frames and starts.
        device: The device of the networks, whose rounding errors a solve depends on.
    """
    options = {f"--{name.replace('_', '-')}": getattr(args, name) for name in SOLVE}
    starts = [
        start if isinstance(start, str) else [hash_of(image) for image in start]
        for start in inputs.starts or ()
    ]
    options |= {"--frames": inputs.num_frames, "--init": starts, "--device": str(device)}
    return plain(options)


def hash_of(image: Any) -> str:
    """A hash of the content of a PIL image."""
    described = f"{image.mode} {image.size} ".encode()
    return hashlib.sha256(described + image.tobytes()).hexdigest()


def absolute(value: Any) -> Any:
    """Paths in a value of the command line, as text and independent of the current folder."""
    if isinstance(value, list):
        return [absolute(one) for one in value]
    if isinstance(value, tuple) and isinstance(value[0], str):  # a path and a weight, and no size
        return f"{Path(value[0]).resolve()}:{value[1]:g}"
    return str(value.resolve()) if isinstance(value, Path) else value


def plain(value: Any) -> Any:
    """A value as JSON gives it back."""
    return json.loads(json.dumps(value))
