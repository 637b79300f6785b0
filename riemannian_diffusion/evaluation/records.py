"""The measures and features of one sequence of frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from riemannian_diffusion import measures as m
from riemannian_diffusion.evaluation.distributions import Features
from riemannian_diffusion.evaluation.protocols import Protocol
from riemannian_diffusion.evaluation.sequences import FrameSequence

_OF_GAPS = {
    "ppl": m.ppl,
    "pdv_variance": m.pdv_variance,
    "pdv_std": m.pdv_std,
    "smoothness": m.smoothness,
    "consistency": m.consistency,
}
_OF_TRUTH = {"mse": m.mse, "psnr": m.psnr, "ssim": m.ssim}


@dataclass(frozen=True)
class Kind:
    """Properties that all sequences of an evaluation must share."""

    num_frames: int
    resolution: tuple[int, int]
    inputs: bool
    truth: bool

    def __str__(self) -> str:
        extras = [f"{'with' if getattr(self, e) else 'without'} {e}" for e in ("inputs", "truth")]
        return f"{self.num_frames} frames of {self.resolution}, {', '.join(extras)}"


@dataclass(frozen=True)
class Record:
    """Everything that an evaluation needs from one sequence.

    Attributes:
        name: Name of the sequence.
        kind: Properties that all sequences must share.
        values: Measures of this sequence alone, by name.
        generated: Features `(draws, frames, d)` of the frames that FID and KID use, or None.
        reference: Features `(2, d)` of the images with which they are compared, or None.
        pasted: Whether the first and last frames are the input images themselves.
    """

    name: str
    kind: Kind
    values: dict[str, float]
    generated: Tensor | None
    reference: Tensor | None
    pasted: bool


@torch.no_grad()
def measure(
    sequence: FrameSequence,
    protocol: Protocol,
    wanted: list[str],
    networks: dict[str, Any],
    max_batch_size: int,
    generator: torch.Generator,
) -> Record:
    """Compute the measures of one sequence, except those whose inputs or true frames it lacks.

    Args:
        sequence: The sequence.
        protocol: The protocol, which defines the frames that FID and KID use.
        wanted: Names of the measures.
        networks: Networks under the names "distance" and "features".
        max_batch_size: Largest number of images in one call of a network.
        generator: Source of the random frames that FID and KID use.

    Raises:
        ValueError: If the sequence does not fit the protocol or has invalid pixels.
    """
    frames = _pixels(sequence.frames, sequence.name, "frames")
    kind = Kind(
        len(frames),
        (frames.shape[-2], frames.shape[-1]),
        sequence.inputs is not None,
        sequence.truth is not None,
    )
    protocol.check(sequence.name, kind.num_frames, kind.resolution)
    ends, middle = frames[[0, -1]], frames[1:-1]
    inputs: Tensor | None = None
    truth: Tensor | None = None
    if sequence.inputs is not None:
        inputs = _pixels(sequence.inputs, sequence.name, "inputs", ends.shape)
    if sequence.truth is not None:
        truth = _pixels(sequence.truth, sequence.name, "truth", middle.shape)

    values: dict[str, float] = {}
    distance: Any = networks.get("distance")  # None only if no measure needs it
    if any(name in _OF_GAPS for name in wanted):
        gaps = m.adjacent_distances(frames, distance, max_batch_size=max_batch_size)
        values |= {name: float(of(gaps)) for name, of in _OF_GAPS.items() if name in wanted}
    if truth is not None:
        wide, true = m.in_float64(middle), m.in_float64(truth)
        for name, of in _OF_TRUTH.items():
            if name in wanted:
                values[name] = float(of(wide, true).mean())
        if "lpips" in wanted:
            apart = m.distances(middle, truth, distance, max_batch_size=max_batch_size)
            values["lpips"] = float(apart.mean())
    if inputs is not None and "re" in wanted:
        values["re"] = float(m.mse(m.in_float64(ends), m.in_float64(inputs)).mean())
    if "largest_step" in wanted:
        values["largest_step"] = float(m.largest_step(m.in_float64(frames)))

    generated = reference = None
    if "fid" in wanted or "kid" in wanted:
        features = networks["features"]
        pool = frames if protocol.set_frames == "all" else middle
        pool = _features(pool, features, max_batch_size)  # (candidates, d)
        reference = _features(ends if inputs is None else inputs, features, max_batch_size)
        generated = pool[None]
        if protocol.num_sampled is not None:
            draws = [
                torch.randperm(len(pool), generator=generator) for _ in range(protocol.num_draws)
            ]
            generated = pool[torch.stack(draws)[:, : protocol.num_sampled]]  # (draws, sampled, d)
    pasted = inputs is not None and torch.equal(ends, inputs)
    return Record(sequence.name, kind, values, generated, reference, pasted)


def _features(images: Tensor, features: Features, max_batch_size: int) -> Tensor:
    """Features of images, `(N, d)`, float64 on the CPU."""
    pieces = []
    for batch in images.split(max_batch_size):
        piece = features(batch)
        if piece.ndim != 2 or len(piece) != len(batch) or piece.shape[1] == 0:
            raise ValueError(
                f"`features` must return ({len(batch)}, d) for {len(batch)} images, but got "
                f"{tuple(piece.shape)}."
            )
        pieces.append(m.in_float64(piece))
    result = torch.cat(pieces)
    if not result.isfinite().all():
        raise ValueError("`features` must return finite values.")
    return result


def _pixels(images: Tensor, name: str, what: str, shape: torch.Size | None = None) -> Tensor:
    """Check images, and return them as floats in [0, 1]."""
    if images.ndim != 4 or images.shape[1] != 3 or (shape is not None and images.shape != shape):
        expected = "(F, 3, H, W)" if shape is None else tuple(shape)
        raise ValueError(f"`{what}` of {name} must be {expected}, but got {tuple(images.shape)}.")
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise ValueError(f"`{what}` of {name} must be floats or uint8, but got {images.dtype}.")
    if not (images.isfinite().all() and images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            f"`{what}` of {name} must have values in [0, 1], but they span "
            f"[{images.min():.3g}, {images.max():.3g}]."
        )
    return images
