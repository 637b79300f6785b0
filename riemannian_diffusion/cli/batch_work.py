"""How the command `batch` makes the morphs of a pair."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from riemannian_diffusion.cli.commands import describe_geodesic
from riemannian_diffusion.cli.flags import with_flags
from riemannian_diffusion.cli.inputs import Inputs, Reader
from riemannian_diffusion.cli.models import load_model
from riemannian_diffusion.cli.morph import conditions_of, distance_of, inverted, shown, solved
from riemannian_diffusion.cli.notes import Notes
from riemannian_diffusion.cli.work import Work
from riemannian_diffusion.pairs.folder import Made
from riemannian_diffusion.pairs.manifest import Pair
from riemannian_diffusion.pipelines import Keyframes
from riemannian_diffusion.pipelines.curves import check_metric
from riemannian_diffusion.pipelines.starts import as_starts
from riemannian_diffusion.runtime import check_device, installed_versions
from riemannian_diffusion.score.schedulers import is_flow


@dataclass(frozen=True)
class Inverted:
    """A pair whose images are inverted, for all methods.

    Attributes:
        args: The command line with the pair's prompts and seed.
        inputs: Its images and frames.
        keys: Its keyframes.
        report: What is known of the inversion.
        warnings: Sentences about it.
    """

    args: argparse.Namespace
    inputs: Inputs
    keys: Keyframes
    report: dict[str, Any]
    warnings: list[str]


class MorphWork:
    """Makes morphs with one pipeline.

    Args:
        args: The command line.
        methods: Names of metrics and curves.
        device: The device of the networks.
        dtype: The name of the networks' dtype.

    Attributes:
        pipe: The pipeline, on its device.

    Raises:
        OSError: If the model cannot be loaded.
        ValueError: If options do not fit each other or the model.
    """

    def __init__(self, args: argparse.Namespace, methods: Sequence[str], device: str, dtype: str):
        self._args, self._device = args, device
        self.pipe = load_model(args, device, dtype)
        self.pipe.set_progress_bar_config(disable=True)
        for method in methods:
            check_metric(method, args.space, is_flow(self.pipe.scheduler))
        as_starts(args.init, args.space)
        self._distance = distance_of(args, self.pipe)
        self._passes = Passes(self.pipe.network)
        names = ("riemannian-diffusion", "torch", "diffusers", "transformers")
        self._about = {"device": device, "dtype": dtype, "versions": installed_versions(names)}

    def prepare(self, pair: Pair) -> Inverted:
        """Read the images of a pair and invert them."""
        start, own = time.perf_counter(), {"prompt": list(pair.prompts), "seed": pair.seed}
        args = argparse.Namespace(**vars(self._args) | own | {"metric": None})
        with Notes(silent=True) as notes:
            reader = Reader(args.background, notes.tell)
            images = [reader.image(path, args.size) for path in pair.images]
            names = [str(path) for path in pair.images]
            inputs = Inputs(images, names, [pair.num_frames], 0.0, None, args.init)
            conditions = conditions_of(args, inputs, self.pipe, nothing_kept())
            keys = inverted(args, inputs, conditions, self.pipe)
        report = {
            "seconds_of_inversion": round(time.perf_counter() - start, 3),
            "passes_of_inversion": self._passes.taken(),
        }
        return Inverted(args, inputs, keys, report, notes.texts)

    def make(self, pair: Pair, prepared: Inverted, method: str) -> Made:
        """Solve, sample and decode a pair by a method."""
        start = time.perf_counter()
        args = argparse.Namespace(**vars(prepared.args) | {"metric": method})
        with Notes(silent=True) as notes:
            path = solved(args, prepared.inputs, prepared.keys, self.pipe, None)
            output = shown(args, None, None, path, self.pipe, nothing_kept(), self._distance)
            for text in output.warnings:
                notes.tell(text)
        found = output.geodesics[0]
        report = {
            "geodesic": None if found is None else describe_geodesic(found),
            "reconstruction_error": output.reconstruction_error,
            "autoencoder_error": output.autoencoder_error,
            "warnings": [*dict.fromkeys([*prepared.warnings, *notes.texts])],
            "seconds": round(time.perf_counter() - start, 3),
            "passes": self._passes.taken(),
        }
        return Made(output.frames, prepared.inputs.images, report | prepared.report | self._about)

    def explain(self, error: Exception) -> str:
        """The sentence that is recorded about an error; raises if the device is lost."""
        self._passes.taken()  # those of the failed morph belong to no other one
        check_device(self._device)
        line = with_flags(" ".join(str(error).split()))
        if isinstance(error, (ValueError, OSError)) and line:
            return line
        return f"{type(error).__name__}: {line}"


def nothing_kept() -> Work:
    """The folder of `--keep` of a command without it."""
    return Work(None, {}, force=False)


class Passes:
    """Counts the points that a network is evaluated at, and those with a gradient.

    Args:
        network: The network.
    """

    def __init__(self, network: Any):
        self._forward = self._reverse = 0
        network.register_forward_pre_hook(self._count, with_kwargs=True)

    def taken(self) -> dict[str, int]:
        """The counts since the last call."""
        found = {"forward": self._forward, "reverse": self._reverse}
        self._forward = self._reverse = 0
        return found

    def _count(self, network: Any, args: tuple, options: dict[str, Any]) -> None:
        points = next(v for v in (*args, *options.values()) if isinstance(v, Tensor))
        self._forward += len(points)
        self._reverse += len(points) * points.requires_grad
