"""Arguments of the stages, checked before any work begins.

Importing this module does not import PyTorch, so the command line can check its options first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from riemannian_diffusion.arguments import (
    check_callable,
    check_file,
    check_finite,
    check_kind,
    check_not_negative,
    check_takes,
    check_whole,
)

if TYPE_CHECKING:
    import os

    import torch

    from riemannian_diffusion.geodesics import Solver

SPACES = ("noise", "clean")
SPACINGS = ("noise", "scheduler")
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def check_choice(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Refuse a value that is not among those allowed.

    Raises:
        ValueError: Naming the argument.
    """
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {allowed}, but got {value!r}.")


def check_generator(generator: torch.Generator | None) -> None:
    """Refuse what is no generator.

    Raises:
        ValueError: If it is something else.
    """
    if generator is not None:
        import torch

        check_kind(torch.Generator, generator=generator)


def check_listener(on_event: Any) -> None:
    """Refuse what cannot receive events.

    Raises:
        ValueError: If it is no function of an event.
    """
    if on_event is not None:
        check_takes("event", on_event=on_event)


def check_batch_size(max_batch_size: int | None) -> None:
    """Refuse what is no batch size.

    Raises:
        ValueError: If it is below 1.
    """
    if max_batch_size is not None:
        check_whole(1, max_batch_size=max_batch_size)


def check_inversion(
    space: str,
    strength: float,
    num_inference_steps: int,
    spacing: str | None,
    fixed_point_iterations: int | None,
    max_batch_size: int | None,
    generator: torch.Generator | None,
) -> None:
    """Check the numbers of the stage `invert`.

    Raises:
        ValueError: If one is out of range.
    """
    check_choice("space", space, SPACES)
    check_whole(1, num_inference_steps=num_inference_steps)
    if spacing is not None:
        check_choice("spacing", spacing, SPACINGS)
    if fixed_point_iterations is not None:
        check_whole(0, fixed_point_iterations=fixed_point_iterations)
    check_finite(strength=strength)
    if not 0 < strength <= 1:
        raise ValueError(f"`strength` must be in (0, 1], but got {strength}.")
    check_batch_size(max_batch_size)
    check_generator(generator)


def check_solve(
    solver: Solver | None,
    max_evals: int,
    rtol: float,
    num_quadrature: int,
    score_mode: str | None,
    checkpoint: str | os.PathLike | None = None,
) -> None:
    """Check the options of the stage `solve`.

    Raises:
        ValueError: If one is out of range.
    """
    if solver is not None:
        from riemannian_diffusion.geodesics import Solver

        check_kind(Solver, solver=solver)
    check_whole(1, max_evals=max_evals, num_quadrature=num_quadrature)
    check_not_negative(rtol=rtol)
    if score_mode is not None:
        from riemannian_diffusion.score.network import MODES

        check_choice("score_mode", score_mode, (None, *MODES))
    if checkpoint is not None:
        check_file(checkpoint=checkpoint)


def check_sampling(adain: bool, attention_interpolation: float, space: str, callback: Any) -> None:
    """Check the options of the stage `sample`.

    Raises:
        ValueError: If one is out of range, or the path is not sampled at all.
    """
    check_finite(attention_interpolation=attention_interpolation)
    if not 0 <= attention_interpolation <= 1:
        raise ValueError(
            f"`attention_interpolation` must be in [0, 1], but got {attention_interpolation}."
        )
    if space == "clean" and (adain or attention_interpolation):
        raise ValueError(
            "`adain` and `attention_interpolation` are options of sampling, and a path in "
            "space='clean' is not sampled."
        )
    check_callback(callback)


def check_callback(callback: Any) -> None:
    """Refuse what cannot follow the steps of sampling.

    Raises:
        ValueError: If it is no function.
    """
    if callback is not None:
        check_callable(callback_on_step_end=callback)
