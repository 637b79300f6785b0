"""Find geodesics, for one pair of points or for many pairs side by side."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from riemannian_diffusion.arguments import check_callable, check_file, check_points
from riemannian_diffusion.files import fingerprint
from riemannian_diffusion.geodesics import checkpoints
from riemannian_diffusion.geodesics.outcome import Geodesic
from riemannian_diffusion.geodesics.problem import Problem, Start, check_ends, listed
from riemannian_diffusion.geodesics.progress import NUM_QUADRATURE, RTOL, Iterate, Options
from riemannian_diffusion.geodesics.runs import Run
from riemannian_diffusion.geodesics.solvers import PathLBFGS, Solver
from riemannian_diffusion.metrics import Metric, PathEnergy
from riemannian_diffusion.score.model import plain_attributes

Callback = Callable[[Iterate], Any]


@torch.inference_mode(False)  # the energy needs a gradient, even in the caller's inference mode
def solving(
    metric: Metric | Sequence[Metric],
    problems: Sequence[Problem],
    *,
    num_quadrature: int = NUM_QUADRATURE,
    solver: Solver | None = None,
    rtol: float = RTOL,
    max_evals: int = 200,
    checkpoint: str | Path | None = None,
) -> Generator[Iterate, None, list[Geodesic]]:
    """Solve many problems side by side, step by step.

    One batch holds the points of all paths that are still being solved. Each problem may have its
    own number of points.

    Args:
        metric: See `geodesic`.
        problems: The problems.
        num_quadrature: See `geodesic`.
        solver: See `geodesic`.
        rtol: See `geodesic`.
        max_evals: As in `geodesic`, for each problem.
        checkpoint: See `geodesic`.

    Yields:
        An `Iterate` after every evaluation, and another one at the end of every iteration. Its
        `pair` is the index of the problem.

    Returns:
        A `Geodesic` for each problem.

    Raises:
        ValueError: If an argument is out of range, or the checkpoint belongs to another problem.
    """
    metrics = _metrics(metric)
    solver = PathLBFGS() if solver is None else solver
    options = Options(num_quadrature, solver, rtol, max_evals)
    # equal metrics are evaluated together, so they share their values at the ends
    first = [next(i for i, m in enumerate(metrics) if m is one) for one in metrics]
    ends: list[dict] = [{} for _ in metrics]
    shared = [ends[i] for i in first]
    file = None
    if checkpoint is not None:
        check_file(checkpoint=checkpoint)
        file = Path(checkpoint)
    states: list[dict[str, Any] | None] = [None] * len(problems)
    described: dict[str, Any] = {}
    if file is not None and problems:
        described = _described(metrics, problems, options)
        saved = checkpoints.load(file, described, problems[0].x0.device)
        if saved is not None:
            states = saved["runs"]
            for known, kept in zip(ends, saved["ends"], strict=True):
                known.update({int(pair): entries for pair, entries in kept.items()})
    runs = [
        Run(problem, i, metrics, options, shared, state)
        for i, (problem, state) in enumerate(zip(problems, states, strict=True))
    ]
    while asking := [run for run in runs if run.question is not None]:
        iterates = []
        for run, answer in _answers(asking, metrics, first, shared):
            iterates += run.take(answer)
        if file is not None and (
            any(i.iteration for i in iterates) or any(run.question is None for run in asking)
        ):
            kept = [{str(pair): entries for pair, entries in known.items()} for known in ends]
            state = {"runs": [run.state() for run in runs], "ends": kept}
            checkpoints.save(file, described, state)
        yield from iterates
    return [run.result for run in runs if run.result is not None]


def _answers(
    runs: Sequence[Run],
    metrics: Sequence[Metric],
    first: Sequence[int],
    ends: Sequence[dict],
) -> list[tuple[Run, PathEnergy]]:
    """The answers to the questions of all runs, those on one metric in one batch."""
    groups: dict[tuple[int, bool, bool], list[tuple[Run, Tensor]]] = {}
    for run in runs:
        if run.question is not None:
            asked = run.question
            key = first[asked.stage], asked.differentiate, asked.departures
            groups.setdefault(key, []).append((run, asked.path))
    answers: dict[int, PathEnergy] = {}
    for (stage, differentiate, departures), group in groups.items():
        found = metrics[stage].energies(
            [path for _, path in group],
            [run.problem.pair for run, _ in group],
            differentiate=differentiate,
            departures=departures,
            ends=ends[stage],
        )
        answers |= {run.index: answer for (run, _), answer in zip(group, found, strict=True)}
    return [(run, answers[run.index]) for run in runs]


def geodesic(
    metric: Metric | Sequence[Metric],
    x0: Tensor,
    x1: Tensor,
    *,
    num_points: int = 17,
    num_quadrature: int = NUM_QUADRATURE,
    init: Start | Sequence[Start] = None,
    solver: Solver | None = None,
    rtol: float = RTOL,
    max_evals: int = 200,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
) -> Geodesic:
    """Find a path of least energy between two points.

    The path is a smooth curve through its nodes (see `smooth`), and the unknowns are the nodes
    between the ends. The optimised energy sums over `num_quadrature` chords of every segment of the
    curve. With one chord for each segment, a solver can lower the energy by steps that leap over
    regions of high energy. From a straight line or another guess, the solve of a `PullbackMetric`
    begins on coarse curves through few nodes, which cost few evaluations of the network. The solve
    is local: it finds the minimum near its start. It is deterministic.

    Args:
        metric: A metric, or several metrics, coarse to fine. Each is solved from the path of the
            previous one, with an equal share of the remaining evaluations.
        x0: First point, `shape`. The solve runs in float64 if `x0` or `x1` is float64, else in
            float32.
        x1: Last point, `shape`.
        num_points: Number of points of the path, at least 2.
        num_quadrature: Number of chords per segment, at least 1; one more after a coarse curve that
            was given up.
        init: The first path: "lerp", "slerp", a path `(num_points, *shape)`, a function
            `(x0, x1, num_points) -> path`, or a list of these. None takes "lerp". With a list, each
            start has an equal share of the remaining evaluations, and the geodesic with the least
            `Geodesic.energy` is returned.
        solver: The solver; None takes `PathLBFGS()`.
        rtol: Relative tolerance. The solver estimates how far the energy lies above the minimum of
            its valley. The solve has converged when this excess is at most this share of the energy
            in three iterations in a row, or when the energy exceeds its lower bound by at most this
            share. After a coarse curve, two iterations are enough, and after two coarse curves one.
            The estimate is half of `g^T H g`, where H is the solver's inverse Hessian and g the
            gradient. With the tangent-normal metric, the default brought the energy within 0.5 % of
            the minimum, and the points within 1 % of the length of the geodesic, on all manifolds
            of the benchmarks. Where valleys are flatter, the estimate is too low. With the score
            Jacobian, whose energy along the data is nearly 0, the energy ended at a larger share
            above the minimum, and on the shipped model, points ended farther away (see
            `benchmarks/claims.py`). A smaller tolerance costs more evaluations.
        max_evals: Largest number of evaluations of energy and gradient, over all starts, metrics
            and coarse curves. With fewer than 40 evaluations for a start, or with one chord per
            segment, there are no coarse curves.
        callback: A function that is called with an `Iterate` after every iteration.
        checkpoint: A file, usually `.safetensors`, to which the state is written after every
            iteration. If the file exists, the solve resumes from it, and its path is bit-identical
            to that of an uninterrupted solve. The file stays after the solve. It does not contain
            the weights of networks, so resume with the same model.

    Returns:
        The `Geodesic`. A solve that does not converge raises no error; see `Geodesic.status`.

    Raises:
        ValueError: If the points differ in shape or are not finite, an argument is out of range, or
            the checkpoint belongs to another problem.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import GaussianMixtureScore
        >>> from riemannian_diffusion import TangentNormalMetric
        >>> from riemannian_diffusion import geodesic
        >>> angles = torch.arange(64) * 2 * torch.pi / 64
        >>> circle = torch.stack([angles.cos(), angles.sin()], 1)
        >>> score = GaussianMixtureScore(circle, 0.2)
        >>> metric = TangentNormalMetric(score)
        >>> found = geodesic(metric, circle[0], circle[20], num_points=17)
        >>> bool((found.path.norm(dim=1) - 1).abs().max() < 0.05)  # it follows the circle
        True
    """
    check_ends(x0, x1)
    problem = Problem.between(x0, x1, num_points=num_points, init=init)
    options = (num_quadrature, solver, rtol, max_evals, checkpoint)
    return _drained(metric, [problem], callback, *options)[0]


def geodesics(
    metric: Metric | Sequence[Metric],
    x0: Tensor,
    x1: Tensor,
    *,
    num_points: int | Sequence[int] = 17,
    num_quadrature: int = NUM_QUADRATURE,
    init: Start | Sequence[Start] = None,
    solver: Solver | None = None,
    rtol: float = RTOL,
    max_evals: int = 200,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
) -> list[Geodesic]:
    """Find paths of least energy for many pairs of points, side by side.

    Each pair is solved as by `geodesic`. One batch holds the points of all paths that are still
    being solved, which uses a large device well even with a small model.

    Args:
        metric: As in `geodesic`, for all pairs; prompts and shared noises may differ between them
            (see `DiffusionScore` and `SharedNoiseScore`).
        x0: First points, `(P, *shape)`.
        x1: Last points, `(P, *shape)`.
        num_points: As in `geodesic`, or a list with one number for each pair.
        num_quadrature: See `geodesic`.
        init: As in `geodesic`, for every pair, but paths are `(P, num_points, *shape)`.
        solver: See `geodesic`.
        rtol: See `geodesic`.
        max_evals: As in `geodesic`, for each pair.
        callback: A function that is called with an `Iterate` after every iteration of every pair.
        checkpoint: As in `geodesic`; one file holds all pairs.

    Returns:
        A `Geodesic` for each pair.

    Raises:
        ValueError: See `geodesic`.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import GaussianMixtureScore
        >>> from riemannian_diffusion import TangentNormalMetric
        >>> from riemannian_diffusion import geodesics
        >>> angles = torch.arange(64) * 2 * torch.pi / 64
        >>> circle = torch.stack([angles.cos(), angles.sin()], 1)
        >>> score = GaussianMixtureScore(circle, 0.2)
        >>> metric = TangentNormalMetric(score)
        >>> found = geodesics(metric, circle[:3], circle[9:12], num_points=9)
        >>> [tuple(one.path.shape) for one in found]
        [(9, 2), (9, 2), (9, 2)]
    """
    check_points(x0=x0, x1=x1)
    if x0.ndim < 2 or x0.shape != x1.shape or x0.numel() == 0:
        raise ValueError(
            "`x0` and `x1` must be points (P, *shape) of one shape, "
            f"but got {tuple(x0.shape)} and {tuple(x1.shape)}."
        )
    numbers: list[Any] = [num_points] * len(x0)
    if isinstance(num_points, (list, tuple)):
        numbers = list(num_points)
    if len(numbers) != len(x0):
        raise ValueError(
            f"`num_points` must be one number, or one for each of {len(x0)} pairs, but got "
            f"{len(numbers)}."
        )
    inits = listed(init)
    for one in inits:
        if isinstance(one, Tensor) and (one.ndim != x0.ndim + 1 or len(one) != len(x0)):
            raise ValueError(
                f"`init` must be {(len(x0), numbers[0], *x0.shape[1:])}, "
                f"but got {tuple(one.shape)}."
            )
    problems = []
    for pair, num in enumerate(numbers):
        mine: list[Start] = [one[pair] if isinstance(one, Tensor) else one for one in inits]
        problem = Problem.between(x0[pair], x1[pair], num_points=num, init=mine, pair=pair)
        problems.append(problem)
    options = (num_quadrature, solver, rtol, max_evals, checkpoint)
    return _drained(metric, problems, callback, *options)


def _drained(
    metric, problems, callback, num_quadrature, solver, rtol, max_evals, checkpoint
) -> list[Geodesic]:
    """Solve all problems, and call `callback` after every iteration."""
    if callback is not None:
        check_callable(callback=callback)
    steps = solving(
        metric,
        problems,
        num_quadrature=num_quadrature,
        solver=solver,
        rtol=rtol,
        max_evals=max_evals,
        checkpoint=checkpoint,
    )
    while True:
        try:
            iterate = next(steps)
        except StopIteration as end:
            return end.value
        if callback is not None and iterate.iteration:
            callback(iterate)


def _metrics(metric: Metric | Sequence[Metric]) -> list[Metric]:
    stages = list(metric) if isinstance(metric, Sequence) else [metric]
    if not stages or not all(isinstance(stage, Metric) for stage in stages):
        raise ValueError(f"`metric` must be a Metric or a sequence of them, but got {metric!r}.")
    return stages


def _described(
    metrics: Sequence[Metric], problems: Sequence[Problem], options: Options
) -> dict[str, Any]:
    """The description of a solve that its checkpoint stores."""
    return {
        "ends": fingerprint([x for p in problems for x in (p.x0, p.x1)]),
        "starts": fingerprint([start for p in problems for start in p.starts]),
        "number of starts": [len(p.starts) for p in problems],
        "pairs": [p.pair for p in problems],
        "metric": [metric.describe() for metric in metrics],
        "num_quadrature": options.num_quadrature,
        "solver": plain_attributes(options.solver, (int, float, str)),
        "rtol": float(options.rtol),
        "max_evals": options.max_evals,
    }
