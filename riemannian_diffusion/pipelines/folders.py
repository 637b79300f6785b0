"""Checks of a diffusers folder before its weights are read."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(?P<first>[\w-]+?))?"
    r"(?:-\d+-of-\d+)?(?:\.(?P<last>[\w-]+))?\.safetensors"
)


def read_index(folder: str | Path) -> dict[str, Any]:
    """The content of a folder's model_index.json.

    Raises:
        OSError: If it is missing or damaged, or the folder is not one of a whole model.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise OSError(f"{folder} is no folder.")
    file = folder / "model_index.json"
    if not file.exists():
        if any((folder / name).exists() for name in ("config.json", "scheduler_config.json")):
            raise OSError(
                f"{folder} holds one component of a model: give the folder above, which holds "
                "model_index.json."
            )
        raise OSError(f"{folder} holds no model: there is no model_index.json in it.")
    return read_json(file)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file.

    Raises:
        OSError: If it is damaged.
    """
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise OSError(f"{file} is damaged: {error}.") from error
    if not isinstance(found, dict):
        raise OSError(f"{file} is damaged: it holds no JSON object.")
    return found


def read_shapes(file: str | Path) -> dict[str, Tensor]:
    """The names and shapes of a file's weights, as tensors without data.

    Raises:
        OSError: If there is no such file, or it is damaged.
        ValueError: If it is no file of safetensors: other formats can run code when they are read.
    """
    path = Path(file)
    if not path.is_file():
        raise OSError(f"there is no file {file}.")
    if path.suffix.lower() != ".safetensors":
        raise ValueError(
            f"{file} must be a .safetensors file: other formats, such as .ckpt, can run code when "
            "they are read. Convert it, or download the .safetensors version."
        )
    try:
        with safe_open(path, "pt") as opened:
            names = opened.keys()
            return {
                name: torch.empty(opened.get_slice(name).get_shape(), device="meta")
                for name in names
            }
    except SafetensorError as error:
        raise OSError(f"{file} is damaged, or no file of safetensors: {error}.") from error


def check_folder(
    folder: str | Path,
    index: Mapping[str, Any],
    *,
    variant: str | None = None,
    given: Collection[str] = (),
    needed: Collection[str] = (),
) -> None:
    """Refuse a folder from which a model cannot be loaded as asked.

    Args:
        folder: The folder.
        index: The content of its model_index.json.
        variant: The variant of the weights that is asked for, such as "fp16", or None.
        given: Names of components that the caller gives.
        needed: Names of components without which there is no pipeline.

    Raises:
        OSError: If a component, a config, a tokenizer, a weight file or the variant is missing, or
            a weight file is damaged.
        ValueError: If the network needs inputs that no pipeline of this library gives.

    Warns:
        UserWarning: If the scheduler's config was written by another class than the index names.
    """
    check_index(folder, index)
    folder = Path(folder)
    found: set[str] = set()
    configs = {}
    for name in sorted({*needed} - {*given}):
        if (index.get(name) or [None])[0] is None:
            raise OSError(f"{folder} has no {name}: its model_index.json names none.")
    for name, value in index.items():
        is_component = isinstance(value, (list, tuple)) and len(value) == 2 and value[0]
        if name.startswith("_") or not is_component or name in given:
            continue
        part = folder / name
        if not part.is_dir():
            raise OSError(f"{folder} lacks the folder {name}, which its model_index.json names.")
        if "Tokenizer" in value[1]:
            _check_tokenizer(part)
        elif value[1].endswith("Scheduler"):
            _tell_scheduler(part / "scheduler_config.json", value[1])
        elif value[1].endswith(("Processor", "Extractor")):
            continue
        elif not (part / "config.json").exists():
            raise OSError(f"{part} holds no config.json: download the whole model.")
        else:
            configs[name] = read_json(part / "config.json")
            found |= _check_weights(part, variant)
    if variant is not None and variant not in found:
        others = sorted(found)
        has = f"has {' and '.join(map(repr, others))}" if others else "has none"
        raise OSError(f"{folder} has no variant {variant!r} of its weights; it {has}.")
    _check_inputs(folder, configs)


def _tell_scheduler(file: Path, named: str) -> None:
    """Warn of a scheduler's config that was written by another class than the index names."""
    other = read_json(file).get("_class_name", named) if file.exists() else named
    if other != named:
        warnings.warn(
            f"model_index.json names the scheduler {named}, but {file} was written by {other}: "
            f"{named} is used, as in diffusers, and reads the values that it shares with {other}. "
            f"If the model needs {other}, correct model_index.json.",
            stacklevel=2,
        )


def check_index(model: object, index: Mapping[str, Any]) -> None:
    """Refuse the refiner of Stable Diffusion XL by the config of its pipeline.

    Raises:
        ValueError: If it is one.
    """
    if index.get("requires_aesthetics_score"):
        raise ValueError(
            f"{model} is a refiner of Stable Diffusion XL, which was trained for the least noisy "
            "levels alone and takes an aesthetic score: load the base model."
        )


def _check_tokenizer(part: Path) -> None:
    """Refuse a tokenizer without a vocabulary."""
    names = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model", "vocab.txt")
    if not any((part / name).exists() for name in names):
        raise OSError(
            f"{part} holds no vocabulary (one of {', '.join(names)}): copy the tokenizer of the "
            "same model into it."
        )


def _variants(part: Path) -> dict[Path, str | None]:
    """The files of a component's weights, and the variant that each belongs to."""
    matches = [(file, WEIGHTS.fullmatch(file.name)) for file in part.glob("*.safetensors")]
    return {file: m["first"] or m["last"] for file, m in matches if m is not None}


def _check_weights(part: Path, variant: str | None) -> set[str]:
    """The variants of a component's weights.

    Raises:
        OSError: If the weights that would be loaded are missing.
    """
    variant_of = _variants(part)
    variants = {*variant_of.values()}
    usable = variants & {None, variant}
    named = {one for one in variants if one is not None}
    if not usable and named:
        one = sorted(named)[0]
        asked = "" if variant is None else f", not {variant!r}"
        raise OSError(
            f"{part} holds its weights in the variant {' and '.join(map(repr, sorted(named)))} "
            f"alone{asked}: give `variant` {one!r}."
        )
    if not usable:
        pickles = [*part.glob("*.bin"), *part.glob("*.ckpt"), *part.glob("*.pt")]
        why = (
            f"{pickles[0].name} is a pickle, which can run code when it is read; download the "
            "safetensors"
            if pickles
            else "download the whole model"
        )
        raise OSError(f"{part} holds no weights as safetensors: {why}.")
    for file, held in variant_of.items():
        if held in usable:
            read_shapes(file)  # refuses a damaged file by name
    for file in part.glob("*.index*.json"):
        missing = sorted(
            {one for one in read_json(file).get("weight_map", {}).values() if ".safetensors" in one}
            - {one.name for one in part.iterdir()}
        )
        if missing and (variant is not None and variant in file.name or None in variants):
            raise OSError(f"{part} lacks the weight file {missing[0]}, which {file.name} names.")
    return named


def _check_inputs(folder: Path, configs: Mapping[str, Any]) -> None:
    """Refuse networks with inputs beside the latents."""
    takes = configs.get("unet", {}).get("in_channels")
    has = configs.get("vae", {}).get("latent_channels")
    if takes is not None and has is not None and takes != has:
        raise ValueError(
            f"{folder} has a network that takes {takes} channels and not the {has} of the latents: "
            "the others hold a mask, an image or a depth map. Load a model without such inputs, "
            "such as the text-to-image version."
        )


def check_complete(
    part: nn.Module,
    source: str | Path,
    *,
    variant: str | None = None,
    low_cpu_mem_usage: bool = True,
) -> None:
    """Refuse a network that was loaded from files which lack weights.

    transformers draws such weights at random. diffusers leaves them without data, but draws them at
    random with `low_cpu_mem_usage=False`.

    Args:
        part: The network.
        source: The folder, or the file of a whole model, from which it was loaded.
        variant: The variant of the weights that was asked for, or None.
        low_cpu_mem_usage: That of `from_pretrained`.

    Raises:
        OSError: Naming the source and a weight.
    """
    lacking = [name for name, value in part.named_parameters() if value.is_meta]
    leaves_out = low_cpu_mem_usage and isinstance(part, ModelMixin)
    if not (lacking or leaves_out):
        lacking = _filled_at_random(part, Path(source), variant)
    if lacking:
        raise OSError(
            f"{source} lacks {len(lacking)} weights of its network, such as {lacking[0]}: download "
            "the whole model again."
        )


def _filled_at_random(part: nn.Module, folder: Path, variant: str | None) -> list[str]:
    """Parameters that no file gives, as the library that loads the network says."""
    if not isinstance(part, (ModelMixin, PreTrainedModel)) or not folder.is_dir():
        return []  # parts of a whole model in one file are never filled at random
    if hasattr(part, "hf_quantizer"):
        return []  # quantised weights have other names in files than in the network
    options: dict[str, Any] = {}
    if isinstance(part, PreTrainedModel):
        options["device_map"] = {"": "meta"}  # only names are read, and no data
    if variant in _variants(folder).values():
        options["variant"] = variant
    kind: Any = type(part)
    _, info = kind.from_pretrained(
        folder, output_loading_info=True, use_safetensors=True, **options
    )
    return sorted({*info["missing_keys"]} & {name for name, _ in part.named_parameters()})
