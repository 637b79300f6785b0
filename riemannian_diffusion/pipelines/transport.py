"""The stage that changes a third image as a path changes its first keyframe."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from riemannian_diffusion.arguments import check_kind
from riemannian_diffusion.events import Event, Listener
from riemannian_diffusion.geodesics import NUM_QUADRATURE
from riemannian_diffusion.pipelines.callbacks import Step
from riemannian_diffusion.pipelines.checks import check_callback, check_solve
from riemannian_diffusion.pipelines.curves import MetricFactory, check_metric
from riemannian_diffusion.pipelines.finished import carrying
from riemannian_diffusion.pipelines.inputs import Image, to_keyframes
from riemannian_diffusion.pipelines.morph import (
    Keyframes,
    MorphPath,
    chained,
    sampled_latents,
    untransported,
)
from riemannian_diffusion.pipelines.morph_stages import MorphStages
from riemannian_diffusion.pipelines.starts import transported
from riemannian_diffusion.pipelines.tolerance import RTOL
from riemannian_diffusion.score import Conditions


class TransportStage(MorphStages):
    """The stage `transport`."""

    @torch.no_grad()
    def transport(
        self,
        path: MorphPath,
        image: Image,
        prompt: str | None = None,
        *,
        bridge: MorphPath | None = None,
        conditions: Conditions | None = None,
        metric: str | MetricFactory | None = None,
        max_evals: int = 200,
        rtol: float = RTOL,
        num_quadrature: int = NUM_QUADRATURE,
        callback_on_step_end: Step | None = None,
        on_event: Listener | None = None,
    ) -> MorphPath:
        """Change an image C as a path changes its first keyframe A into its last one B.

        The path from A to C is found and sampled, and the change is moved along it among the
        clean latents (`riemannian_diffusion.analogy`).

        Args:
            path: The path from A to B, two keyframes, sampled.
            image: The image C, of the keyframes' size.
            prompt: The prompt of C. None takes that of the keyframes, if they share one.
            bridge: The path from A to C, sampled or not, as an error carries it: then it is not
                searched again, and `prompt`, `conditions`, `metric` and what follows them have no
                effect.
            conditions: What `condition` returned for C, in place of the prompt.
            metric: The metric for the path from A to C; see `solve`. None takes the path's own.
            max_evals: See `solve`.
            rtol: See `solve`.
            num_quadrature: See `solve`.
            callback_on_step_end: As in `sample`, for the path from A to C. If it interrupts, the
                path from B by A to C comes back as it is.
            on_event: Receives events; None shows progress bars.

        Returns:
            The path from B by A to C, whose `transported` latents are the frames: C first.

        Raises:
            ValueError: If the path has not two keyframes or has not been sampled, or C or `bridge`
                does not fit.
            Exception: Any error that ends the stage after the path from A to C was found, also one
                that a callback raises or a `KeyboardInterrupt`, has it as attribute `bridge`.

        Examples:
            >>> from PIL import Image
            >>> from riemannian_diffusion import demo
            >>> from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline
            >>> pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
            >>> a, b = (Image.open(path) for path in demo.endpoint_paths())
            >>> keys = pipe.invert([a, b], num_inference_steps=5)
            >>> path = pipe.sample(pipe.solve(keys, "lerp", num_frames=3))
            >>> changed = pipe.transport(path, b)
            >>> tuple(changed.shown.shape)
            (3, 4, 16, 16)
        """
        path = self.connect(untransported(path))
        sampled_latents(path)
        keys = path.keys
        if len(keys) != 2:
            raise ValueError(
                f"`path` must lead from one keyframe to another, but has {len(keys)} keyframes."
            )
        check_callback(callback_on_step_end)
        pixels = to_keyframes([image], self._image_channels, self._size_factor, least=1)
        if pixels.shape[1:] != keys.pixels.shape[1:]:
            raise ValueError(
                f"`image` must have the keyframes' size, but is {tuple(pixels.shape[1:])} and not "
                f"{tuple(keys.pixels.shape[1:])}."
            )
        pixels = pixels.to(keys.pixels.device)
        if bridge is None:
            theirs = self._conditions_of_third(keys, prompt, conditions)
            bridge = self._bridge(
                path,
                pixels,
                theirs,
                path.metric if metric is None else metric,
                on_event,
                {"max_evals": max_evals, "rtol": rtol, "num_quadrature": num_quadrature},
            )
        found = self.connect(untransported(bridge))
        _check_bridge(found, path, pixels)
        with carrying("bridge", lambda: found, "Call `pipe.transport` again with `bridge`."):
            if found.latents is None:
                found = self.sample(
                    found,
                    attention_interpolation=path.attention_interpolation,
                    callback_on_step_end=callback_on_step_end,
                    on_event=on_event,
                )
                if self._interrupt:
                    return _joined(path, found)
            return self._run(self._transporting(path, found), on_event)

    def _bridge(
        self,
        path: MorphPath,
        pixels: Tensor,
        theirs: Conditions,
        metric: str | MetricFactory,
        on_event: Listener | None,
        options: dict[str, Any],
    ) -> MorphPath:
        """The path from the first keyframe of a path to an image `(1, 3, H, W)`."""
        keys = path.keys
        check_metric(metric, keys.space, keys.levels.schedule.is_flow)
        check_solve(None, options["max_evals"], options["rtol"], options["num_quadrature"], None)
        draft = replace(keys, pixels=pixels, levels=replace(keys.levels, conditions=theirs))
        (third,) = self._run(self._inverting([draft], [None]), on_event)
        first = keys.levels.conditions.at_knots([0])
        both = chained([(keys, 0), (third, 0)], Conditions.through([(first, 1), (theirs, 1)]))
        return self.solve(both, metric, num_frames=len(path), on_event=on_event, **options)

    def _transporting(self, path: MorphPath, bridge: MorphPath) -> Generator[Event, Any, MorphPath]:
        """Events of the last step of transport; returns the whole path with its frames."""
        yield Event("transport", 0, 1)
        levels = bridge.keys.levels
        levels = replace(levels, conditions=levels.conditions.at_knots([1]))
        latents = transported(sampled_latents(path), sampled_latents(bridge), levels)
        yield Event("transport", 1, 1, latents)
        return replace(_joined(path, bridge), transported=latents)

    def _conditions_of_third(
        self, keys: Keyframes, prompt: str | None, conditions: Conditions | None
    ) -> Conditions:
        """Conditions of an image beside two keyframes, under their negative prompt."""
        shared = keys.levels.conditions
        if conditions is None and prompt is None:
            if shared.num_knots > 1:
                raise ValueError(
                    "The keyframes have prompts of their own: give the `prompt` of `image`."
                )
            return shared
        if conditions is None:
            check_kind(str, prompt=prompt)
            conditions = replace(self.condition(prompt or ""), options=shared.options)
        elif prompt is not None:
            raise ValueError("Give `prompt` or `conditions`, not both.")
        check_kind(Conditions, conditions=conditions)
        if conditions.num_knots > 1:
            raise ValueError(
                "`conditions` must be those of one image, but are given for "
                f"{conditions.num_knots}."
            )
        positive = dict(conditions.positive)
        if "guidance" in shared.positive:  # an input of the network, which keyframes share
            positive["guidance"] = shared.positive["guidance"]
        return replace(conditions, positive=positive, negative=shared.negative)


def _check_bridge(bridge: MorphPath, path: MorphPath, pixels: Tensor) -> None:
    """Refuse a path that does not lead from the first keyframe of a path to an image.

    Raises:
        ValueError: If it leads elsewhere, or has another number of frames.
    """
    ours, theirs = path.keys, bridge.keys
    fits = len(theirs) == 2 and len(bridge) == len(path) and ours.space == theirs.space
    if not (fits and theirs.points[0].equal(ours.points[0]) and theirs.pixels[1:].equal(pixels)):
        raise ValueError(
            "`bridge` must lead from the first keyframe of `path` to `image` in as many frames as "
            "`path`: give the one that an error of the same call carries."
        )


def _joined(path: MorphPath, bridge: MorphPath) -> MorphPath:
    """The sampled path from B by A to C, of one from A to B and one from A to C."""
    keys, ours, theirs = path.keys, path.keys.levels.conditions, bridge.keys.levels.conditions
    turned = ours.at_knots([1, 0])
    last = replace(theirs.at_knots([1]), loras=ours.loras)  # a loaded path has its own copy
    three = chained(
        [(keys, 1), (keys, 0), (bridge.keys, 1)], Conditions.through([(turned, 2), (last, 1)])
    )
    return MorphPath(
        three,
        torch.cat([path.points.flip(0), bridge.points[1:]]),
        torch.cat([(1 - path.times).flip(0), 1 + bridge.times[1:]]),
        (*path.geodesics, *bridge.geodesics),
        bridge.metric,
        torch.cat([sampled_latents(path).flip(0), sampled_latents(bridge)[1:]]),
        path.attention_interpolation,
    )
