"""Models in one file: what a file holds, and the configs and tokenizers that it lacks."""

from __future__ import annotations

import gzip
import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers.loaders.single_file_utils import (
    CHECKPOINT_KEY_NAMES,
    DIFFUSERS_DEFAULT_PIPELINE_PATHS,
    infer_diffusers_model_type,
)
from torch import Tensor
from transformers import CLIPTokenizer

from riemannian_diffusion.pipelines.folders import read_index, read_shapes
from riemannian_diffusion.pipelines.known import FLUX, SD, SD3, XL, support

DATA = Path(__file__).parent / "single_files"
FAMILIES = {
    **{"v1": SD, "v2": SD, "xl_base": XL, "sd3": SD3, "sd35_medium": SD3, "sd35_large": SD3},
    **{"flux-dev": FLUX, "flux-schnell": FLUX},
}
"""Type of a checkpoint, as diffusers names it -> this library's pipeline."""

KEYS: Any = CHECKPOINT_KEY_NAMES  # names of single weights, by which parts of a file are known
TEXT_ENCODERS: dict[
    str, dict[str, str]
] = {  # type of a checkpoint -> its text encoders, and a key of each
    "v1": {"text_encoder": KEYS["clip"]},
    "v2": {"text_encoder": KEYS["open_clip"]},
    "xl_base": {"text_encoder": KEYS["clip_sdxl"], "text_encoder_2": KEYS["open_clip_sdxl"]},
    "sd3": {"text_encoder": KEYS["clip_sd3"], "text_encoder_2": KEYS["open_clip_sd3"]},
    "flux-dev": {"text_encoder": KEYS["clip_sd3"], "text_encoder_2": "text_encoders.t5xxl."},
}
TEXT_ENCODERS |= {name: TEXT_ENCODERS["sd3"] for name in ("sd35_medium", "sd35_large")}
TEXT_ENCODERS["flux-schnell"] = TEXT_ENCODERS["flux-dev"]

LORA: tuple[str, ...] = ("lora_unet_", "lora_te")
PARTS: tuple[
    tuple[tuple[str, ...], str, str], ...
] = (  # beginnings of all names of weights, by which files of other kinds are known
    (LORA, "a LoRA", "load a model, and give this file to `load_lora_weights`"),
    (("image_proj.", "ip_adapter."), "an IP-Adapter", "give it to `load_ip_adapter`"),
    (
        ("encoder.", "decoder.", "quant_conv.", "post_quant_conv."),
        "an autoencoder",
        "load a model, and give this as its `vae`",
    ),
    (("text_model.", "encoder.", "shared."), "a text encoder", "give a file with all parts"),
    (
        (
            *("conv_in.", "conv_out.", "conv_norm_out.", "time_embedding.", "down_blocks."),
            *("mid_block.", "up_blocks.", "add_embedding.", "pos_embed.", "time_text_embed."),
            *("context_embedder.", "x_embedder.", "norm_out.", "proj_out.", "transformer_blocks."),
            "single_transformer_blocks.",
        ),
        "the network of a diffusers model",
        "give the folder above, which holds model_index.json",
    ),
)


class FileWarning(UserWarning):
    """A file does not say everything about its model."""


@contextmanager
def prepared(
    file: str | Path, config: str | Path | None, given: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """What diffusers' `from_single_file` needs for a file, besides the file.

    Args:
        file: A file of safetensors with a whole model in its original layout.
        config: A folder with the diffusers version of a model of the same family; its components
            also replace those that the file lacks. None takes the configs that ship with this
            package, or those in the cache of the Hub.
        given: Components that the caller gives.

    Yields:
        The name of this library's pipeline, and further arguments of `from_single_file`.

    Raises:
        OSError: If the file is missing or damaged.
        ValueError: If the file is no model of a known family, or lacks parts that `config` does not
            give.

    Warns:
        FileWarning: If something about the model had to be assumed.
    """
    shapes = read_shapes(file)
    kind = type_of(file, shapes)
    config = _config_of(file, kind, config)
    if config is None:
        _check_parts(file, kind, shapes, None, given)
        with tempfile.TemporaryDirectory() as folder:
            write_configs(kind, Path(folder))
            made: dict[str, Any] = {
                name: clip_tokenizer(pad) for name, pad in _types()[kind]["tokenizers"].items()
            }
            if FAMILIES[kind] == SD3:
                made |= _without_t5(file, shapes, given)
            _tell_assumptions(file, kind)
            yield FAMILIES[kind], made | {"config": folder, "local_files_only": True}
        return
    _check_parts(file, kind, shapes, Path(config), given)
    yield _pipeline_of(file, kind, config), {"config": str(config), "local_files_only": True}


def pipeline_of_file(file: str | Path, config: str | Path | None) -> str:
    """The name of this library's pipeline for a file; arguments and errors as in `prepared`."""
    kind = type_of(file, read_shapes(file))
    return _pipeline_of(file, kind, _config_of(file, kind, config))


def _config_of(file: str | Path, kind: str, config: str | Path | None) -> str | Path | None:
    """The folder with configs for a type of checkpoint; None takes those of this package.

    Raises:
        ValueError: If there are none.
    """
    if config is not None or kind in _types():
        return config
    found = _cached(kind)
    if found is None:
        raise ValueError(
            f"{file} is a model of the type {kind}. Its configs, tokenizers and text encoders are "
            "neither in the file nor in the cache of the Hub: give `config`, a folder with the "
            f"diffusers version of the same model{_repository(kind)}."
        )
    return found


def _pipeline_of(file: str | Path, kind: str, config: str | Path | None) -> str:
    """The name of this library's pipeline for a type of checkpoint.

    Raises:
        ValueError: If the folder of configs belongs to another family.
    """
    if config is None:
        return FAMILIES[kind]
    found = support(str(read_index(config).get("_class_name")))
    if found.pipeline is None or found.pipeline != FAMILIES.get(kind, found.pipeline):
        raise ValueError(
            f"`config` {config} belongs to a {found.name}, but {file} is a model of the type "
            f"{kind}: give a folder of the same family."
        )
    return found.pipeline


def write_configs(kind: str, folder: Path) -> None:
    """Write the configs of a type of checkpoint into a folder, as diffusers lays them out."""
    entry, parts = _types()[kind], _data()["parts"]
    index: dict[str, Any] = dict(entry["index"])
    for name, (library, cls, part) in entry["components"].items():
        index[name] = [library, cls]
        is_scheduler = name == "scheduler"
        (folder / name).mkdir()
        file = folder / name / ("scheduler_config.json" if is_scheduler else "config.json")
        file.write_text(json.dumps(parts[part]))
    index |= {name: ["transformers", "CLIPTokenizer"] for name in entry["tokenizers"]}
    (folder / "model_index.json").write_text(json.dumps(index))


def clip_tokenizer(pad_token: str) -> CLIPTokenizer:
    """The tokenizer of CLIP, from the merges that ship with this package.

    Args:
        pad_token: The token after the end of a prompt, which differs between models.
    """
    merges = gzip.decompress((DATA / "clip_merges.txt.gz").read_bytes()).decode().splitlines()
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [*map(chr, printable), *(chr(256 + i) for i in range(len(others)))]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["".join(merge.split()) for merge in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[tuple(merge.split()) for merge in merges],  # type: ignore[misc]
        model_max_length=77,
        pad_token=pad_token,
    )


def type_of(file: str | Path, shapes: Mapping[str, Tensor]) -> str:
    """The type of a checkpoint, as diffusers names it.

    Args:
        file: The file, for messages.
        shapes: What `read_shapes` returns for it.

    Raises:
        ValueError: If the file is no whole model, or one that no pipeline of this library loads.
    """
    for starts, what, advice in PARTS:
        if _is_lora(shapes) if starts == LORA else all(n.startswith(starts) for n in shapes):
            raise ValueError(f"{file} holds {what} and not a whole model: {advice}.")
    kind = infer_diffusers_model_type(shapes)
    first = shapes.get(KEYS["inpainting"])
    if kind == "v1" and (first is None or KEYS["v1"] not in shapes):
        raise ValueError(f"{file} holds no model of a known family.")
    if first is not None and first.shape[1] != 4:
        raise ValueError(
            f"{file} is a model whose network takes {first.shape[1]} channels and not the 4 of the "
            "latents: the others hold a mask, an image or a depth map. Give a model without such "
            "inputs."
        )
    if kind == "xl_refiner":
        raise ValueError(
            f"{file} is the refiner of Stable Diffusion XL, which was trained for the least noisy "
            "levels alone: give the base model."
        )
    return kind


def _is_lora(shapes: Mapping[str, Tensor]) -> bool:
    return any(".lora_" in name or name.startswith(LORA) for name in shapes)


def _check_parts(
    file: str | Path,
    kind: str,
    shapes: Mapping[str, Tensor],
    config: Path | None,
    given: Mapping[str, Any],
) -> None:
    """Refuse a file without an autoencoder or text encoders, if nothing else gives them."""
    wanted: dict[str, Any] = {"vae": ("first_stage_model.", "vae."), **TEXT_ENCODERS.get(kind, {})}
    for name, starts in wanted.items():
        has = any(one.startswith(starts) for one in shapes)
        elsewhere = config is not None and any((config / name).glob("*.safetensors"))
        if not (has or elsewhere or name in given):
            raise ValueError(
                f"{file} lacks the {name}, and "
                + ("no `config` is given" if config is None else f"so does `config` {config}")
                + ": give `config`, a folder with the diffusers version of a model of this family, "
                f"which holds {name}/ with its weights{_repository(kind)}."
            )


def _without_t5(
    file: str | Path, shapes: Mapping[str, Tensor], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Components in place of T5, whose tokenizer is not part of a file."""
    if "text_encoder_3" in given and "tokenizer_3" in given:
        return {}
    if any(name.startswith("text_encoders.t5xxl.") for name in shapes):
        warnings.warn(
            f"{file} is loaded without its T5 text encoder, because a file holds no tokenizer: "
            "give `config`, a folder with the diffusers version of the same model, to use it.",
            FileWarning,
            stacklevel=5,
        )
    return {"text_encoder_3": None, "tokenizer_3": None}


def _tell_assumptions(file: str | Path, kind: str) -> None:
    if kind == "v2":
        warnings.warn(
            f"{file} is taken for a Stable Diffusion 2 of 768 pixels, whose network predicts a "
            "velocity. One of 512 pixels (base) looks the same but predicts noise: for that, give "
            "`config`, a folder with the diffusers version of the same model.",
            FileWarning,
            stacklevel=5,
        )


def _cached(kind: str) -> str | None:
    """The folder of a type's configs in the cache of the Hub, or None."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    known = DIFFUSERS_DEFAULT_PIPELINE_PATHS.get(kind)
    if known is None:
        return None
    try:
        folder = snapshot_download(known["pretrained_model_name_or_path"], local_files_only=True)
    except LocalEntryNotFoundError:
        return None
    return folder if (Path(folder) / "model_index.json").exists() else None


def _repository(kind: str) -> str:
    """In brackets, a repository with the diffusers version of a type, if one is known."""
    found = DIFFUSERS_DEFAULT_PIPELINE_PATHS.get(kind)
    return "" if found is None else f" ({found['pretrained_model_name_or_path']})"


def _data() -> dict[str, Any]:
    return json.loads((DATA / "configs.json").read_text())


def _types() -> dict[str, Any]:
    return _data()["types"]
