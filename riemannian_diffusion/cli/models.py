"""The model of a command line: its pipeline, and what else is loaded into it."""

from __future__ import annotations

import argparse
import logging
import re
import warnings
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import torch
import transformers
from diffusers import AutoencoderKL, AutoencoderTiny

from riemannian_diffusion import demo, pipelines
from riemannian_diffusion.media import open_image
from riemannian_diffusion.pipelines import AutoGeodesicInterpolationPipeline
from riemannian_diffusion.pipelines.folders import check_complete, read_json, read_shapes
from riemannian_diffusion.pipelines.single_file import LORA, pipeline_of_file
from riemannian_diffusion.runtime import check_device

DOWN = re.compile(r"lora_A\.|lora_down\.|lora\.down\.")  # one weight for each layer of a LoRA
AUTOENCODERS = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}


def load_model(args: argparse.Namespace, device: str, dtype: str) -> Any:
    """The pipeline of `--model` on a device, with what other options add to it.

    Args:
        args: The command line.
        device: The device on which networks run.
        dtype: The name of the networks' dtype.

    Raises:
        OSError: If a file is missing or cannot be loaded.
        ValueError: If options do not fit each other or the model.
    """
    check_device(device)
    for library in (diffusers, transformers):  # stderr is for errors and the morph's own bars
        library.utils.logging.set_verbosity(logging.CRITICAL)  # their errors are raised here again
        library.utils.logging.disable_progress_bar()
    huggingface_hub.logging.set_verbosity(logging.CRITICAL)
    model = Path(demo.model_path()) if args.model is None else args.model
    if args.model is None and args.variant is not None:
        raise ValueError("--variant is for a --model, and the shipped model has no variants.")
    is_file = Path(model).is_file()
    if is_file and args.variant is not None:
        raise ValueError("--variant chooses among files of a folder, but --model is one file.")
    if not is_file and args.config is not None:
        raise ValueError("--config is for a --model that is one file, but it is none.")
    try:
        kind = _kind(model, args.config)
    except Exception as error:  # a broken config fails in as many ways as there are libraries
        raise OSError(f"--model {model} cannot be loaded: {error}") from error
    check_model_options(args, kind, device)
    options: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if args.variant is not None:
        options["variant"] = args.variant
    if args.no_safety_checker:
        options |= {"safety_checker": None, "requires_safety_checker": False}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            pipe = (
                kind.from_single_file(model, config=args.config, **options)
                if is_file
                else kind.from_pretrained(model, **options)
            )
    except Exception as error:  # a broken model fails in as many ways as there are libraries
        raise OSError(f"--model {model} cannot be loaded: {error}") from error
    if args.vae is not None:
        pipe.register_modules(vae=read_autoencoder(args.vae, pipe.vae))
    if args.lora:
        load_loras(pipe, args.lora)
    if args.ip_adapter is not None:
        load_ip_adapter(pipe, *args.ip_adapter)
    if args.vae_slicing:
        pipe.vae.enable_slicing()
    if args.vae_tiling:
        pipe.vae.enable_tiling()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)  # every evaluation with a gradient would do so and undo it
    _place(pipe, device, args.offload)
    return pipe


def _kind(model: str | Path, config: Path | None) -> Any:
    """The class of the pipeline that loads a model."""
    suffixes = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
    if Path(model).suffix in suffixes or Path(model).is_file():
        return getattr(pipelines, pipeline_of_file(model, config))
    return AutoGeodesicInterpolationPipeline.pipeline_of(model)


def check_model_options(args: argparse.Namespace, kind: Any, device: str) -> None:
    """Refuse options that a family of models lacks, or that do not fit each other.

    Args:
        args: The command line.
        kind: The class of the pipeline.
        device: The device on which networks run.

    Raises:
        ValueError: Naming the option.
    """
    parts = kind._get_signature_keys(kind)[0]
    images = getattr(args, "ip_adapter_image", None)
    lacks = {
        "--vae": args.vae is not None and "vae" not in parts,
        "--vae-slicing": args.vae_slicing and "vae" not in parts,
        "--vae-tiling": args.vae_tiling and "vae" not in parts,
        "--no-safety-checker": args.no_safety_checker and "safety_checker" not in parts,
        "--lora": args.lora and not hasattr(kind, "load_lora_weights"),
        "--ip-adapter": args.ip_adapter is not None and not kind._has_ip_adapters,
    }
    for flag, is_lacking in lacks.items():
        if is_lacking:
            raise ValueError(f"{flag} does not fit --model: a {kind.__name__} has no use for it.")
    if args.command != "app" and (args.ip_adapter is None) != (images is None):
        raise ValueError("--ip-adapter and --ip-adapter-image need each other: give both or none.")
    if args.command == "app" and args.ip_adapter is not None:
        raise ValueError("--ip-adapter needs an image, which the page does not ask for.")
    if args.offload is not None and torch.device(device).type == "cpu":
        raise ValueError(
            "--offload keeps the model in the CPU's memory, which saves nothing with --device cpu: "
            "leave it out, or give another --device."
        )


def _place(pipe: Any, device: str, offload: str | None) -> None:
    """Bring a pipeline to a device, or parts of it while they run."""
    if offload is None:
        pipe.to(device)
    elif offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    elif not hasattr(pipe, "enable_group_offload"):
        raise ValueError("--offload group needs a newer diffusers: pip install -U diffusers")
    else:
        pipe.enable_group_offload(onload_device=torch.device(device), offload_type="leaf_level")


def read_autoencoder(path: Path, old: Any) -> Any:
    """The autoencoder of `--vae`, in place of a model's own.

    Args:
        path: A folder of diffusers, of an autoencoder or of a whole model; or a .safetensors file,
            whose layers must be those of the model's own autoencoder.
        old: The model's own autoencoder.

    Raises:
        OSError: If it cannot be loaded.
        ValueError: If it has other latents.
    """
    if path.is_dir():
        folder = path if (path / "config.json").exists() else path / "vae"
        file = folder / "config.json"
        if not file.exists():
            raise OSError(f"--vae {path} holds no autoencoder: there is no config.json in it.")
        config = _loaded(path, lambda: read_json(file))
        kind = AUTOENCODERS.get(config.get("_class_name", ""))
        if kind is None or not isinstance(old, tuple(AUTOENCODERS.values())):
            raise ValueError(
                f"--vae {path} is a {config.get('_class_name')}, which does not fit this model's "
                f"{type(old).__name__}: give one of {', '.join(AUTOENCODERS)}."
            )
        _check_latents(path, config.get("latent_channels", 4), old)
        new = _loaded(path, lambda: kind.from_pretrained(folder, use_safetensors=True))
        check_complete(new, folder)
    else:
        try:
            shapes = read_shapes(path)
        except (OSError, ValueError) as error:
            raise type(error)(f"--vae: {error}") from error
        first = [
            one.shape[1] for name, one in shapes.items() if name.endswith("decoder.conv_in.weight")
        ]
        if not first:
            raise ValueError(f"--vae {path} holds no autoencoder.")
        _check_latents(path, first[0], old)
        new = type(old).from_config(old.config)
        new = _loaded(path, lambda: _filled(new, path))
    if _scale(new) != _scale(old):
        raise ValueError(
            f"--vae {path} makes images of {_scale(new)} pixels along each side of a latent, but "
            f"the model needs {_scale(old)}: give an autoencoder of the same family."
        )
    return new.to(old.dtype).eval()


def _filled(model: Any, path: Path) -> Any:
    """An autoencoder with the weights of a file in the original or in diffusers' layout."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
    from safetensors.torch import load_file

    state = load_file(path)
    if not model.state_dict().keys() <= state.keys():
        state = convert_ldm_vae_checkpoint(state, model.config)
    model.load_state_dict(state)
    return model


def _check_latents(path: Path, channels: int, old: Any) -> None:
    wanted = old.config.latent_channels
    if channels != wanted:
        raise ValueError(
            f"--vae {path} has latents of {channels} channels, but the model needs {wanted}: give "
            "an autoencoder of the same family."
        )


def _scale(vae: Any) -> int:
    """The number of pixels along each side of a latent."""
    names = ("decoder_block_out_channels", "block_out_channels")
    channels = next(vae.config[name] for name in names if vae.config.get(name))
    return 2 ** (len(channels) - 1)


def load_loras(pipe: Any, given: list[tuple[str, float]]) -> None:
    """Load LoRAs into a pipeline.

    Args:
        pipe: The pipeline.
        given: The file and the weight of each.

    Raises:
        OSError: If a file is missing or cannot be loaded.
        ValueError: If a file holds no LoRA, or one of another model.
    """
    names = []
    for i, (path, _) in enumerate(given):
        try:
            shapes = read_shapes(path)
        except (OSError, ValueError) as error:
            raise type(error)(f"--lora: {error}") from error
        if not any("lora" in name or name.startswith(LORA) for name in shapes):
            raise ValueError(f"--lora {path} holds no LoRA: no weight in it has lora in its name.")
        names.append(f"lora_{i}")
        file = Path(path).resolve()

        def load(file: Path = file, name: str = names[-1]) -> None:
            pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)

        try:
            _loaded(path, load, "--lora")
        except ImportError as error:
            raise ValueError(
                "--lora needs peft: pip install 'riemannian-diffusion[adapt]'"
            ) from error
        found = {one for adapters in pipe.get_list_adapters().values() for one in adapters}
        if names[-1] not in found:
            raise ValueError(
                f"--lora {path} belongs to another model: none of its layers is in this one."
            )
        num = sum(bool(DOWN.search(one)) for one in shapes)
        num_used = sum(
            names[-1] in getattr(layer, "lora_A", ())
            for part in pipe.components.values()
            if isinstance(part, torch.nn.Module)
            for layer in part.modules()
        )
        if num_used < num:
            warnings.warn(
                f"--lora {path} has {num} layers, of which {num - num_used} are not in this model "
                "and have no effect. Was it made for another model?",
                stacklevel=2,
            )
    pipe.set_adapters(names, [weight for _, weight in given])


def load_ip_adapter(pipe: Any, path: str, weight: float) -> None:
    """Load an IP-Adapter into a pipeline.

    Args:
        pipe: The pipeline.
        path: Its file; the folder `image_encoder` beside it is used unless the model has its own.
        weight: Its weight.

    Raises:
        OSError: If a file is missing or cannot be loaded.
        ValueError: If the file holds no IP-Adapter of such a model.
    """
    try:
        shapes = read_shapes(path)
    except (OSError, ValueError) as error:
        raise type(error)(f"--ip-adapter: {error}") from error
    if not any(name.startswith("ip_adapter.") for name in shapes):
        raise ValueError(f"--ip-adapter {path} holds no IP-Adapter.")
    file = Path(path).resolve()
    has_own = getattr(pipe, "image_encoder", None) is not None
    if not has_own and not (file.parent / "image_encoder" / "config.json").exists():
        raise OSError(
            f"--ip-adapter {path} needs an image encoder in the folder image_encoder beside it: "
            "copy it there from the repository of the IP-Adapter."
        )

    def load() -> None:
        pipe.load_ip_adapter(
            str(file.parent), subfolder="", weight_name=file.name, local_files_only=True
        )
        pipe.set_ip_adapter_scale(weight)

    _loaded(path, load, "--ip-adapter")
    if not has_own:
        check_complete(pipe.image_encoder, file.parent / "image_encoder")


def ip_adapter_images(args: argparse.Namespace) -> Any:
    """The images of `--ip-adapter-image` as `condition` takes them, or None."""
    if args.ip_adapter_image is None:
        return None
    images = [open_image(path, None) for path in args.ip_adapter_image]
    return images[0] if len(images) == 1 else [images]  # a list holds one entry for each adapter


def _loaded(path: Any, load: Any, flag: str = "--vae") -> Any:
    """What a function loads; errors of libraries name the flag.

    Raises:
        OSError: If it cannot be loaded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return load()
    except ImportError:
        raise
    except Exception as error:  # a file of another model fails in many ways
        if "size mismatch" in str(error):  # followed by a line for each layer
            raise OSError(
                f"{flag} {path} cannot be loaded: it is for another model, with layers of other "
                "sizes."
            ) from error
        raise OSError(f"{flag} {path} cannot be loaded: {error}") from error
