"""The stages of a morph as generators of events; each returns its result."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from riemannian_diffusion.adaptation import interpolated_attention
from riemannian_diffusion.arguments import kind_of
from riemannian_diffusion.batches import BatchSize, Learned
from riemannian_diffusion.ddim import invert_steps, sample_steps
from riemannian_diffusion.events import Event, run
from riemannian_diffusion.geodesics import Geodesic, Iterate, Problem, Start, solving
from riemannian_diffusion.geometry import pace_by_samples
from riemannian_diffusion.levels import Levels
from riemannian_diffusion.metrics import Metric
from riemannian_diffusion.paths import points_at
from riemannian_diffusion.pipelines.callbacks import OnStep
from riemannian_diffusion.pipelines.curves import (
    CURVES,
    METRICS,
    Gap,
    MetricFactory,
    split_path,
)
from riemannian_diffusion.pipelines.finished import carrying
from riemannian_diffusion.pipelines.inputs import is_images
from riemannian_diffusion.pipelines.model import check_finite_values
from riemannian_diffusion.pipelines.morph import Keyframes, MorphPath
from riemannian_diffusion.pipelines.starts import OneStart, RoadmapStart, roadmap_path
from riemannian_diffusion.score import Conditions, ScoreModel, SharedNoiseScore, Where

_TOL = 1e-3  # largest residual of an inversion's step, see `riemannian_diffusion.invert`
_GUIDED_TOL = 1e-5  # the same with guidance, along which residuals grow more than a hundredfold
_MOST_PACED = 17  # largest number of points of a gap that are sampled to pace it


def inverting(
    levels: Levels, clean: Tensor, where: Where, fixed_point_iterations: int | None
) -> Generator[Event, Any, Tensor]:
    """Invert clean latents `(K, C, h, w)` to the noisiest step of the levels' schedule."""
    schedule = levels.schedule
    steps = invert_steps(
        levels,
        clean,
        schedule.timesteps,
        final_abar=schedule.final_abar,
        fixed_point_iterations=fixed_point_iterations,
        tol=_GUIDED_TOL if levels.guides else _TOL,
        where=where,
    )
    points, total = clean, len(schedule.levels)
    yield Event("invert", 0, total, clean)
    for i, points in enumerate(steps):
        yield Event("invert", i + 1, total, points, timestep=schedule.timesteps[-1 - i])
    check_finite_values(points, "Inverting the images")
    return points


def solving_morphs(
    gaps: Sequence[Gap],
    metric: str | MetricFactory,
    starts: Sequence[OneStart],
    images_to_points: Callable[[Gap, Any], Tensor],
    *,
    checkpoint: Path | None,
    **options: Any,
) -> Generator[Event, Any, list[MorphPath]]:
    """Find the paths of morphs; gaps of one network and one size side by side.

    An error carries the paths that were found before it, as `solve` describes.

    Args:
        gaps: The gaps of every morph, in order.
        metric: A metric's or a curve's name, or a factory `ScoreModel -> Metric`.
        starts: Where to start, as `as_starts` gives them.
        images_to_points: A gap and images -> points of the path's space.
        checkpoint: A file for the state of the solve, or None.
        **options: Options of `geodesics`.

    Returns:
        The path of each morph.
    """
    found: dict[int, Geodesic | Tensor] = {}
    name = metric if isinstance(metric, str) else getattr(metric, "__name__", "custom")
    firsts = [i for i, gap in enumerate(gaps) if gap.index == 0]

    def path_from(first: int) -> MorphPath | None:
        keys = gaps[first].keys
        mine = [found[i] for i in range(first, first + keys.num_gaps) if i in found]
        return joined_path(keys, mine, name) if len(mine) == keys.num_gaps else None

    def finished() -> list[MorphPath | None] | None:
        paths = [path_from(first) for first in firsts]
        return paths if any(path is not None for path in paths) else None

    with carrying("path", finished, "It lists a path for each morph, or None if none was found."):
        if isinstance(metric, str) and metric in CURVES:
            for i, gap in enumerate(gaps):
                yield Event("solve", i, len(gaps), gap=i)
                found[i] = CURVES[metric](gap)
            yield Event("solve", len(gaps), len(gaps), gap=len(gaps) - 1)
        else:
            factory = METRICS[metric] if isinstance(metric, str) else metric
            groups: dict[tuple, dict[int, Gap]] = {}
            for i, gap in enumerate(gaps):
                groups.setdefault(_batch_of(gap), {})[i] = gap
            num_evals = [0] * len(gaps)
            yield Event("solve", 0)
            for number, members in enumerate(groups.values()):
                file = checkpoint
                if checkpoint is not None and number > 0:
                    file = checkpoint.with_name(f"{checkpoint.stem}-{number}{checkpoint.suffix}")
                metrics = _metrics_of(factory, [*members.values()])  # before starts call networks
                problems = [
                    Problem.between(
                        *gap.ends,
                        num_points=gap.num_frames,
                        init=[_start_of(gap, start, images_to_points) for start in starts],
                        pair=pair,
                    )
                    for pair, gap in enumerate(members.values())
                ]
                iterates = solving(metrics, problems, checkpoint=file, **options)
                geodesics = yield from _solve_events(iterates, [*members], num_evals)
                found |= zip(members, geodesics, strict=True)  # kept if pacing fails
                found |= zip(members, _paced([*members.values()], geodesics), strict=True)
    return [path for path in map(path_from, firsts) if path is not None]


def _paced(gaps: Sequence[Gap], found: Sequence[Geodesic]) -> list[Geodesic]:
    """The geodesics of gaps at the pace of their samples; in clean space, at their own."""
    first = gaps[0]
    if first.keys.space == "clean":
        return list(found)
    schedule = first.levels.schedule
    return pace_by_samples(
        _joined(gaps),
        found,
        schedule.timesteps,
        num_points=[min(_MOST_PACED, 2 * gap.num_frames - 1) for gap in gaps],
        final_abar=schedule.final_abar,
    )


def _metrics_of(factory: MetricFactory, gaps: Sequence[Gap]) -> Sequence[Metric]:
    """The metrics that a factory makes of the joint score of gaps.

    Raises:
        ValueError: If it makes something else.
    """
    made = factory(_joint_score(gaps))
    metrics = made if isinstance(made, (list, tuple)) else [made]
    if not metrics or not all(isinstance(one, Metric) for one in metrics):
        raise ValueError(f"`metric` must make a Metric of a score, but made {kind_of(made)}.")
    return metrics


def _solve_events(
    iterates: Generator[Iterate, None, list[Geodesic]], members: Sequence[int], num_evals: list[int]
) -> Generator[Event, Any, list[Geodesic]]:
    """Events of a solve of some gaps; returns their geodesics.

    Args:
        iterates: The solve.
        members: The number of each gap among all gaps.
        num_evals: The number of evaluations of every gap, which is kept up to date.
    """
    while True:
        try:
            iterate = next(iterates)
        except StopIteration as end:
            return end.value
        gap = members[iterate.pair]
        num_evals[gap] = iterate.num_evals
        steps = sum(num_evals), None, iterate.path, iterate.energy, gap, iterate.iteration
        yield Event("solve", *steps)


def _batch_of(gap: Gap) -> tuple:
    """A key that is equal for gaps that can be solved in one batch."""
    shape = tuple(gap.ends[0].shape)
    return shape, gap.timestep, gap.mode, gap.keys.space, *model_of(gap.levels)


def model_of(levels: Levels) -> tuple:
    """A key that is equal for levels whose conditions can be joined."""
    conditions = levels.conditions
    return (
        *(id(levels.network), levels.guidance_scale, levels.guidance_damping),
        *(levels.max_batch_size, repr(dict(conditions.options))),
        *(conditions.loras and id(conditions.loras), conditions.outline),
    )


def joined_levels(several: Sequence[tuple[Levels, Where]]) -> tuple[Levels, Where]:
    """The levels under the conditions of all, and the places of all points in these conditions."""
    kinds = list(dict.fromkeys(levels.conditions for levels, _ in several))
    first = several[0][0]
    if len(kinds) > 1:
        first = replace(first, conditions=Conditions.join([(kind, 1) for kind in kinds]))
    places = [Where(where.u, kinds.index(levels.conditions)) for levels, where in several]
    return first, Where.cat(places)


def _joint_score(gaps: Sequence[Gap]) -> ScoreModel:
    """The score of the gaps' level; each gap's conditions and noise are those of its number."""
    first = gaps[0]
    score = _joined(gaps)(first.timestep, mode=first.mode)
    if first.keys.noise is None:
        return score
    noise = first.keys.noise
    if any(gap.keys.noise is not noise for gap in gaps):
        noises = [gap.keys.noise for gap in gaps if gap.keys.noise is not None]
        noise = torch.stack(noises)[:, None]  # (B, 1, C, h, w)
    return SharedNoiseScore(score, noise)


def _joined(gaps: Sequence[Gap]) -> Levels:
    """The levels of the gaps' model; each gap's conditions are those of its number."""
    joined = Conditions.join([(gap.levels.conditions, 1) for gap in gaps])
    return replace(gaps[0].levels, conditions=joined)


def _start_of(gap: Gap, start: OneStart, images_to_points) -> Start:
    """A start as `geodesic` takes it: names of the model's paths, samples and images as points."""
    if isinstance(start, str) and start == "split":
        return split_path(gap, gap.levels.mode)
    if isinstance(start, str) and start == "roadmap":
        start = RoadmapStart()
    if isinstance(start, RoadmapStart):
        middle = replace(gap.levels, conditions=gap.levels.conditions.mean())
        clean = roadmap_path(replace(gap, levels=middle), start)
        return to_path_space(gap, clean)
    if is_images(start):
        return images_to_points(gap, start)
    return cast(Start, start)


def to_path_space(gap: Gap, clean: Tensor) -> Tensor:
    """Clean latents `(F, C, h, w)` along a gap as points of the path's space."""
    if gap.keys.space == "clean":
        return clean.clone()
    where = Where.even(len(clean))
    return run(inverting(gap.levels, clean, where, gap.keys.fixed_point_iterations))


class InterpolatedAttentionScore(ScoreModel):
    """A score whose network reads keys and values interpolated between those of two keyframes.

    It takes a whole path at a time, and gives the network the points of a gap as one batch. If
    memory runs out, it gives the network fewer points at a time, each time with both keyframes.

    Args:
        score: The score; it must not split batches.
        network: The network that it evaluates.
        path: The path.
        batch_size: The number of points at a time, beside the two keyframes.
    """

    def __init__(
        self, score: ScoreModel, network: nn.Module, path: MorphPath, batch_size: BatchSize
    ):
        self.alpha, self.sigma = score.alpha, score.sigma
        self.score, self.network, self.batch_size = score, network, batch_size
        self._times, self._gaps = path.times, path.gaps

    def __call__(self, x: Tensor, where: Where | None = None) -> Tensor:
        """The score at every point of the path."""
        pieces = []
        for i, gap in enumerate(self._gaps):
            here = None if where is None else where[gap]
            value = self._between(x[gap], self._times[gap] - i, here)
            pieces.append(value if i == 0 else value[1:])  # a keyframe belongs to two gaps
        return torch.cat(pieces)

    def _between(self, x: Tensor, fractions: Tensor, where: Where | None) -> Tensor:
        """The score at the points of a gap, at these fractions of it."""
        last = len(x) - 1

        def call(chunk: slice) -> Tensor:
            between = slice(max(1, chunk.start), chunk.stop)
            points, places = (torch.cat([of[:1], of[between], of[last:]]) for of in (x, fractions))
            here = None
            if where is not None:
                here = Where.cat([where[:1], where[between], where[last:]])
            with interpolated_attention(self.network, places):
                value = self.score(points, here)
            own = slice(0 if chunk.start == 0 else 1, None if chunk.stop == last else -1)
            return value[own]

        return torch.cat(list(self.batch_size.run(last, call)))


def sampling(
    paths: Sequence[MorphPath], on_step: OnStep
) -> Generator[Event, Any, tuple[list[MorphPath], bool]]:
    """Sample clean latents from the points of paths; those of one model and size in one batch.

    Args:
        paths: The paths, in noise space.
        on_step: Called with the number of the step, its timestep, its latents and the levels after
            each step of a batch; returns how to go on.

    Returns:
        The paths with clean latents and without extensions, which continued the old latents, and
        whether sampling came to its end.
    """
    groups: dict[tuple, list[int]] = {}
    for i, path in enumerate(paths):
        groups.setdefault(_sampled_with(path), []).append(i)
    found, proceeds = list(paths), True
    for members in groups.values():
        latents, goes_on = yield from _sampling_together([paths[i] for i in members], on_step)
        pieces = latents.split([len(paths[i]) for i in members])
        for i, piece in zip(members, pieces, strict=True):
            piece = piece if len(members) == 1 else piece.clone()
            found[i] = replace(paths[i], latents=piece, beyond=None)
        proceeds = proceeds and goes_on
    return found, proceeds


def _sampled_with(path: MorphPath) -> tuple:
    """A key that is equal for paths that can be sampled in one batch."""
    levels = path.keys.levels
    alone = id(path) if path.attention_interpolation else None  # needs a whole path at a time
    return (
        *(alone, tuple(path.points.shape[1:]), levels.conditions.num_knots),
        *(levels.schedule.levels, levels.schedule.final_abar, *model_of(levels)),
    )


def _sampling_together(
    paths: Sequence[MorphPath], on_step: OnStep
) -> Generator[Event, Any, tuple[Tensor, bool]]:
    """Sample the points of all paths in one batch.

    Returns:
        Clean latents `(F, C, h, w)`, and whether sampling came to its end.
    """
    path = paths[0]
    levels, where = joined_levels([(one.keys.levels, one.where) for one in paths])
    points = torch.cat([one.points for one in paths])
    schedule = levels.schedule
    timesteps, total = schedule.timesteps, len(schedule.levels)
    together = BatchSize(argument=None)
    shared = set(timesteps[: round(path.attention_interpolation * total)])

    def level_at(timestep: float) -> ScoreModel:
        if timestep not in shared:
            return levels(timestep)
        # it halves its batches itself, because each must have both keyframes
        undivided = Learned(BatchSize(divisible=False))
        whole = replace(levels, max_batch_size=None, learned=undivided)(timestep)
        assert levels.network is not None
        return InterpolatedAttentionScore(whole, levels.network, path, together)

    steps = sample_steps(level_at, points, timesteps, final_abar=schedule.final_abar, where=where)
    latents, proceeds = None, True  # None starts the steps
    yield Event("sample", 0, total, points)
    for i, timestep in enumerate(timesteps):
        latents, levels, proceeds = on_step(i, timestep, steps.send(latents), levels)
        yield Event("sample", i + 1, total, latents, timestep=timestep)
        if not proceeds:
            break
    assert latents is not None
    check_finite_values(latents, "Sampling")
    return latents, proceeds


def replaced_times(path: MorphPath, times: Tensor) -> MorphPath:
    """The path with its points moved along it to other times, not yet sampled there."""
    points = points_at(path.points, path.times, times / path.keys.num_gaps)
    return replace(path, points=points, times=times, latents=None, beyond=None, transported=None)


def joined_path(keys: Keyframes, found: list[Geodesic | Tensor], metric: str) -> MorphPath:
    """The path through all gaps of a morph."""
    points, times = [], []
    for i, one in enumerate(found):
        piece = one.path if isinstance(one, Geodesic) else one
        u = i + torch.linspace(0, 1, len(piece), dtype=torch.float64)
        points.append(piece if i == 0 else piece[1:])
        times.append(u if i == 0 else u[1:])
    geodesics = tuple(one if isinstance(one, Geodesic) else None for one in found)
    return MorphPath(keys, torch.cat(points), torch.cat(times), geodesics, metric)
