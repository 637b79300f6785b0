"""The stages of a morph as methods of a pipeline: invert, solve, sample and what follows."""

from __future__ import annotations

import os
import warnings
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from riemannian_diffusion.arguments import check_kind
from riemannian_diffusion.events import Event, Listener, run
from riemannian_diffusion.geodesics import NUM_QUADRATURE, Solver
from riemannian_diffusion.paths import adain as matched
from riemannian_diffusion.paths import points_at
from riemannian_diffusion.pipelines.callbacks import OnStep, Step, following
from riemannian_diffusion.pipelines.checks import (
    check_generator,
    check_listener,
    check_sampling,
    check_solve,
)
from riemannian_diffusion.pipelines.curves import (
    CURVES,
    MODEL_CURVES,
    Gap,
    MetricFactory,
    check_metric,
)
from riemannian_diffusion.pipelines.inputs import Image, for_each, to_keyframes
from riemannian_diffusion.pipelines.inversion import InvertStage
from riemannian_diffusion.pipelines.morph import (
    Keyframes,
    MorphPath,
    learning_together,
    untransported,
)
from riemannian_diffusion.pipelines.stages import (
    sampling,
    solving_morphs,
    to_path_space,
)
from riemannian_diffusion.pipelines.starts import MorphStart, as_starts, check_starts
from riemannian_diffusion.pipelines.tolerance import RTOL
from riemannian_diffusion.pipelines.unused import UnusedWarning, unused_by_curves


class MorphStages(InvertStage):
    """The stages of a morph, each a method that works on its own."""

    @overload
    def solve(self, keys: Keyframes, *args: Any, **options: Any) -> MorphPath: ...
    @overload
    def solve(self, keys: Sequence[Keyframes], *args: Any, **options: Any) -> list[MorphPath]: ...
    @torch.no_grad()
    def solve(
        self,
        keys: Keyframes | Sequence[Keyframes],
        metric: str | MetricFactory = "tangent_normal",
        *,
        num_frames: int | Sequence[int] | None = None,
        init: MorphStart = None,
        solver: Solver | None = None,
        max_evals: int = 200,
        rtol: float = RTOL,
        num_quadrature: int = NUM_QUADRATURE,
        score_mode: str | None = None,
        checkpoint: str | os.PathLike | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        on_event: Listener | None = None,
    ) -> MorphPath | list[MorphPath]:
        """Find the path between keyframes.

        Within a gap, frames are evenly spaced: in clean space along the path, and in noise space
        along samples of a few of its points (`pace_by_samples`). A curve that is no geodesic keeps
        its own pace. Each gap has as many frames as it is given, so the speed jumps at a keyframe
        where the lengths per frame differ. `path.speeds` are the speeds of the gaps.

        Args:
            keys: Keyframes, or a list of them, which is solved side by side.
            metric: "tangent_normal", "score_jacobian", "stein", "likely" (`LikelyMetric`, without
                backward passes of the network), "euclidean"; or a factory `ScoreModel -> Metric`;
                or a curve that is no metric's geodesic: "slerp", "lerp" and, in noise space,
                "split", "nao", "noise_diffusion" and "density" of `riemannian_diffusion.baselines`.
                "noise_diffusion" misses the keyframes.
            num_frames: Frames from each keyframe to the next, both included, at least 2: one number
                or one for each gap. None takes the keyframes' own `frame_numbers`, or else 17.
            init: Where the solve starts: None is slerp in noise space and lerp in clean space.
                Otherwise as in `geodesic`; or in noise space "split"; or "roadmap" or a
                `RoadmapStart`, along samples of the model; or a list of images, such as the frames
                of a video model, which are brought into the space of the path. From a list of
                starts, the path of least energy is kept.
            solver: See `geodesic`.
            max_evals: As in `geodesic`, for each gap.
            rtol: The relative tolerance, as in `geodesic`, whose default is a tenth of this one.
                On scenes whose true geodesics are known, without guidance, a smaller tolerance
                takes more evaluations, and its paths are no nearer to the truth.
            num_quadrature: See `geodesic`.
            score_mode: The score of the metric, or of "split" and "density": "conditional",
                "guided" or "difference" (see `DiffusionScore`). None takes the one that sampling
                uses, but for "density" the published "difference". "split" has no "difference".
            checkpoint: A file that holds the state of the solve after every iteration. If it
                exists, the solve resumes from it.
            generator: Source of the levels and noises of "density" and of roadmaps; for a list of
                keyframes also a list with one for each.
            on_event: Receives events; None shows progress bars.

        Returns:
            The path, or one for each of the list.

        Raises:
            ValueError: If an argument is out of range, or the metric reads the difference of equal
                prompts.
            Exception: Any error that ends the solve of a list, also one that `on_event` raises or a
                `KeyboardInterrupt`, has a list as attribute `path` if a path was found before: the
                path of each morph, or None. Morphs that are solved in one batch end together; use
                `checkpoint` to resume a solve that has not ended.

        Warns:
            UnusedWarning: If an option is given that the curve `metric` does not read.

        Examples:
            >>> from PIL import Image
            >>> from riemannian_diffusion import demo
            >>> from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline
            >>> pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
            >>> images = [Image.open(path) for path in demo.endpoint_paths()]
            >>> keys = pipe.invert(images, num_inference_steps=5)
            >>> path = pipe.solve(keys, "score_jacobian", num_frames=5, max_evals=5)
            >>> tuple(path.points.shape)
            (5, 4, 16, 16)
        """
        several: list[Any] = list(keys) if isinstance(keys, (list, tuple)) else [keys]
        if not several:
            raise ValueError("`keys` must be keyframes or a list of them, but got an empty list.")
        for one in several:
            check_kind(Keyframes, keys=one)
        several = learning_together([self.connect(one) for one in several])
        check_solve(solver, max_evals, rtol, num_quadrature, score_mode, checkpoint)
        check_listener(on_event)
        generators = for_each("generator", generator, len(several))
        for source in generators:
            check_generator(source)
        for one in several:
            check_metric(metric, one.space, one.levels.schedule.is_flow, score_mode)
        unused = unused_by_curves(
            [metric],
            init=init,
            solver=solver,
            max_evals=max_evals,
            rtol=rtol,
            num_quadrature=num_quadrature,
            score_mode=score_mode,
            checkpoint=checkpoint,
        )
        if unused is not None:
            warnings.warn(unused, UnusedWarning, stacklevel=2)
        starts = [as_starts(init, one.space) for one in several]
        if any(
            len(other) != len(starts[0]) or one.space != several[0].space
            for one, other in zip(several, starts, strict=True)
        ):
            raise ValueError("Keyframes that are solved side by side must be in one space.")
        for one in several:
            counts, shape = one.frames_per_gap(num_frames), one.points.shape[1:]
            check_starts(starts[0], counts, one.pixels, self._size_factor, shape)
        gaps = self._gaps(several, metric, num_frames, score_mode, generators)
        events = solving_morphs(
            gaps,
            metric,
            starts[0],
            self._points_of_images,
            checkpoint=None if checkpoint is None else Path(checkpoint),
            num_quadrature=num_quadrature,
            solver=solver,
            rtol=rtol,
            max_evals=max_evals,
        )
        paths = self._run(events, on_event)
        return paths[0] if isinstance(keys, Keyframes) else paths

    @overload
    def sample(self, path: MorphPath, *args: Any, **options: Any) -> MorphPath: ...
    @overload
    def sample(self, path: Sequence[MorphPath], *args: Any, **options: Any) -> list[MorphPath]: ...
    @torch.no_grad()
    def sample(
        self,
        path: MorphPath | Sequence[MorphPath],
        *,
        adain: bool = False,
        attention_interpolation: float = 0.0,
        callback_on_step_end: Step | None = None,
        on_event: Listener | None = None,
    ) -> MorphPath | list[MorphPath]:
        """Sample clean latents from the points of a path.

        Args:
            path: The path, or a list of them, such as those of several metrics. Paths of one model
                and one size are sampled in one batch, if there is no callback.
            adain: Give noisy points means and spreads between those of the keyframes first
                (`riemannian_diffusion.adain`, arXiv 2312.07409).
            attention_interpolation: Share of the sampling steps, the first ones, in which the
                network's self-attention reads keys and values interpolated between those of the
                keyframes (`riemannian_diffusion.interpolated_attention`, arXiv 2312.07409, there
                0.6). The frames of a gap then are one batch, whatever `max_batch_size`; if memory
                runs out, they are two or more, each together with the two keyframes.
            callback_on_step_end: Called as `callback(pipe, step, timestep, {"latents": ...})` after
                every step; it may return changed latents, or set `pipe._interrupt` or
                `pipe._guidance_scale`. The `PipelineCallback` objects of diffusers work, too.
            on_event: Receives events; None shows progress bars.

        Returns:
            The path with its clean latents, or one for each of the list. In clean space these are
            the path's points.

        Raises:
            ValueError: If an option does not fit the space, or a value is not finite.

        Examples:
            >>> from PIL import Image
            >>> from riemannian_diffusion import demo
            >>> from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline
            >>> pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
            >>> images = [Image.open(path) for path in demo.endpoint_paths()]
            >>> keys = pipe.invert(images, num_inference_steps=5)
            >>> path = pipe.sample(pipe.solve(keys, "slerp", num_frames=3))
            >>> tuple(path.latents.shape)
            (3, 4, 16, 16)
        """
        several: list[Any] = list(path) if isinstance(path, (list, tuple)) else [path]
        for i, one in enumerate(several):
            several[i] = one = self.connect(untransported(one))
            check_sampling(adain, attention_interpolation, one.keys.space, callback_on_step_end)
        for i, one in enumerate(several):
            several[i] = one = replace(one, attention_interpolation=attention_interpolation)
            if adain:
                pieces = [matched(one.points[gap]) for gap in one.gaps]
                points = torch.cat([p if j == 0 else p[1:] for j, p in enumerate(pieces)])
                several[i] = replace(one, points=points)
        on_step = following(self, callback_on_step_end)
        batches = [several] if callback_on_step_end is None else [[one] for one in several]
        found: list[MorphPath] = []
        for batch in batches:
            found += self._run(self._sampling(batch, on_step), on_event)[0]
        return found[0] if isinstance(path, MorphPath) else found

    # Parts of the stages

    def _gaps(
        self,
        several: Sequence[Keyframes],
        metric: str | MetricFactory,
        num_frames: int | Sequence[int] | None,
        score_mode: str | None,
        generators: Sequence[torch.Generator | None],
    ) -> list[Gap]:
        """The gaps of keyframes, which may be drafts.

        Raises:
            ValueError: If their conditions do not have the mode of the score.
        """
        gaps = []
        for one, source in zip(several, generators, strict=True):
            mode = score_mode or ("difference" if metric == "density" else one.levels.mode)
            for i, num in enumerate(one.frames_per_gap(num_frames)):
                conditions = one.levels.conditions.at_knots([i, i + 1])
                levels = replace(one.levels, conditions=conditions)
                gaps.append(Gap(one, i, num, levels, mode, source))
        if not isinstance(metric, str) or metric not in CURVES or metric in MODEL_CURVES:
            for gap in gaps:
                gap.levels(gap.timestep, mode=gap.mode)
        return gaps

    def _sampling(
        self, paths: Sequence[MorphPath], on_step: OnStep
    ) -> Generator[Event, Any, tuple[list[MorphPath], bool]]:
        """Events of sampling; returns the paths with latents, and whether it came to its end."""
        noisy = [one for one in paths if one.keys.space != "clean"]
        sampled, proceeds = yield from sampling(noisy, on_step)
        rest = iter(sampled)
        found = [
            replace(one, latents=one.points) if one.keys.space == "clean" else next(rest)
            for one in paths
        ]
        return found, proceeds

    def _points_of_images(self, gap: Gap, images: Sequence[Image]) -> Tensor:
        """Images along a gap as points of the path's space, as many as the gap has frames."""
        pixels = to_keyframes(images, self._image_channels, self._size_factor)
        pixels = pixels.to(gap.keys.clean.device)
        clean = run(self._encoding(pixels, gap.levels.max_batch_size, gap.levels.learned))
        clean[0], clean[-1] = gap.clean
        points = to_path_space(gap, clean)
        u = torch.linspace(0, 1, len(points), dtype=torch.float64)
        points = points_at(points, u, torch.linspace(0, 1, gap.num_frames, dtype=torch.float64))
        points[0], points[-1] = gap.ends
        return points
