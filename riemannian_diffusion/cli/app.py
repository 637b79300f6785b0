"""The command `app`: what it serves."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any

from riemannian_diffusion.cli.notes import Notes
from riemannian_diffusion.cli.options.app import AUTH
from riemannian_diffusion.runtime import default_dtype, first_device

SHIPPED = "shipped"


def run_app(args: argparse.Namespace) -> None:
    """Serve the page."""
    auth = read_auth(args.auth, os.environ.get(AUTH))
    given = [None if model == SHIPPED else model for model in args.model or [SHIPPED]]
    check_models(args, given)
    for name in args.allow_host:
        if not re.fullmatch(r"[\w.-]+", name):
            raise ValueError(
                "--allow-host must be a name without protocol, port and path, such as "
                f"morphs.example.org, but got {name!r}."
            )
    if not 0 <= args.port < 2**16:
        raise ValueError(f"--port must be from 0 to 65535, but got {args.port}.")
    print("preparing the page ...", flush=True)  # before imports, which take seconds
    try:
        from riemannian_diffusion.app import Models, Offer, serve
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the app needs {error.name}: pip install 'riemannian-diffusion[app]'"
        ) from error
    from riemannian_diffusion.cli.models import load_model

    device = args.device or first_device()
    dtype = args.dtype or default_dtype(device)

    def offer(model: str | None, name: str) -> Offer:
        one = argparse.Namespace(**vars(args) | {"model": model})

        def load() -> Any:
            print(f"loading {'the shipped model' if model is None else model} ...", flush=True)
            with Notes():  # other libraries' warnings are for developers
                return load_model(one, device, dtype)

        return Offer(name, load, size_of(model, args.variant))

    models = Models([offer(m, name) for m, name in zip(given, names_of(given), strict=True)])
    models.get(models.names[0])  # a mistake shows before the page opens
    if args.auth is not None:
        warn(f"other users of this machine can read --auth in its list of processes: set {AUTH}.")
    serve(models, args.host, args.port, auth=auth, names=args.allow_host)


def warn(text: str) -> None:
    """Print a warning."""
    import sys

    print(f"riemannian-diffusion: warning: {text}", file=sys.stderr)


def read_auth(given: str | None, environment: str | None) -> tuple[str, str] | None:
    """Name and password, or None.

    Args:
        given: The flag.
        environment: The environment variable, if there is no flag.

    Raises:
        ValueError: If a name or a password is missing. The message quotes neither.
    """
    text, source = (given, "--auth") if given is not None else (environment, AUTH)
    if text is None:
        return None
    name, colon, password = text.partition(":")
    if not (name and colon and password):
        raise ValueError(f"{source} must be a name and a password with a colon between them.")
    return name, password


def check_models(args: argparse.Namespace, models: list[str | None]) -> None:
    """Refuse options that fit one model, if there are several, and a model given twice.

    Raises:
        ValueError: Naming the option.
    """
    if len(models) == 1:
        return
    for flag in ("config", "variant", "vae", "lora"):
        if getattr(args, flag):
            raise ValueError(f"--{flag} fits one --model, but {len(models)} are given.")
    for model in models:
        if models.count(model) > 1:
            raise ValueError(f"--model {model or SHIPPED} is given twice.")


def names_of(models: list[str | None]) -> list[str]:
    """What visitors read of each model: the name of its folder, file or repository."""
    found: list[str] = []
    for model in models:
        name = SHIPPED if model is None else model
        if model is not None and Path(model).exists():
            name = Path(model).resolve().name  # visitors need not know the folders of the server
        number = sum(other.partition(" (")[0] == name for other in found)
        found.append(f"{name} ({number + 1})" if number else name)
    return found


def size_of(model: str | None, variant: str | None) -> int | None:
    """Size of a model's weights in bytes, or None if they are not on this machine."""
    if model is None or not Path(model).exists():
        return None
    path = Path(model)
    files = [path] if path.is_file() else [*path.glob("*/*.safetensors")]
    if variant is not None:
        files = [file for file in files if f".{variant}." in file.name]
    elif path.is_dir():
        files = [file for file in files if file.name.count(".") == 1]
    return sum(file.stat().st_size for file in files) or None
