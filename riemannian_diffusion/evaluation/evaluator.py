"""Run a protocol over frame sequences."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from riemannian_diffusion import measures as m
from riemannian_diffusion.evaluation.bootstrap import bootstrap_interval
from riemannian_diffusion.evaluation.definitions import MEASURES
from riemannian_diffusion.evaluation.distributions import (
    Features,
    Statistic,
    frechet_statistic,
    kernel_statistic,
    too_small_for_fid,
)
from riemannian_diffusion.evaluation.protocols import PROTOCOLS, Protocol
from riemannian_diffusion.evaluation.results import Evaluation, Result
from riemannian_diffusion.evaluation.sequences import FrameSequence
from riemannian_diffusion.measures import Distance, inception_features, lpips_distance
from riemannian_diffusion.measures.frames import import_extra

FEW_SEQUENCES = 10  # a bootstrap over fewer covers visibly less than it says

_OF_GAPS = {
    "ppl": m.ppl,
    "pdv_variance": m.pdv_variance,
    "pdv_std": m.pdv_std,
    "smoothness": m.smoothness,
    "consistency": m.consistency,
}
_OF_TRUTH = {"mse": m.mse, "psnr": m.psnr, "ssim": m.ssim}
_ABSENT = {
    "inputs": "the sequences come without their input images",
    "truth": "the sequences come without true middle frames",
}


def evaluate(
    sequences: Iterable[FrameSequence],
    protocol: Protocol | str,
    *,
    distance: Distance | None = None,
    features: Features | None = None,
    device: str = "cpu",
    max_batch_size: int = 8,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    skip_missing: bool = False,
) -> Evaluation:
    """Take the measures of a protocol over sequences of frames.

    Hand in raw frames: original end points pasted in for the model's own flatter FID and LPIPS.

    Args:
        sequences: The sequences, all of one length and size, and all with inputs or none, with
            truth or none. Read once, so a generator may load them one by one.
        protocol: A `Protocol`, or the name of one of `PROTOCOLS`.
        distance: In place of LPIPS: `(x, y) -> (N,)` for images `(N, 3, H, W)` in [0, 1]. Its
            attribute `name`, else its type's, goes into the results as the backbone.
        features: In place of Inception: `x -> (N, d)`, likewise.
        device: Where the networks run that are loaded here.
        max_batch_size: Images that a network is given at once, at least 1.
        num_resamples: Behind each interval; 0 for no intervals. FID's take longest.
        confidence: Of the intervals, in (0, 1).
        seed: Of the resampling and of the protocol's random frames.
        skip_missing: Report measures whose network or library is missing in `Evaluation.missing`
            instead of raising. Measures of data that the sequences lack are always reported so.

    Returns:
        The `Evaluation`.

    Warns:
        UserWarning: Each sentence of `Evaluation.warnings`: sets too small for FID, pasted end
            points, too few sequences for an interval.

    Raises:
        ImportError: If a library of the `eval` extra is missing.
        OSError: If a network's weights are missing; the message names the file.
        ValueError: If an argument is out of range, a sequence is not what the protocol is about, or
            no measure could be computed.
    """
    protocol = _named(protocol)
    _check(max_batch_size, num_resamples, confidence)
    networks, missing = _networks(protocol, distance, features, device, skip_missing)
    wanted = [name for name in protocol.measures if name not in missing]
    generator = torch.Generator().manual_seed(seed)
    records: list[_Record] = []
    for sequence in sequences:
        records.append(_measure(sequence, protocol, wanted, networks, max_batch_size, generator))
        if records[-1].kind != records[0].kind:
            raise ValueError(
                f"All sequences must be of one kind, but {records[0].name} is "
                f"{records[0].kind} and {records[-1].name} is {records[-1].kind}."
            )
    if not records:
        raise ValueError("There are no sequences to evaluate.")
    missing |= _lacking(records, wanted)
    results = []
    for name, statistic in _statistics(records, protocol, missing).items():
        value = float(statistic.of(torch.arange(len(records))))
        if not math.isfinite(value):
            missing[name] = f"it is {value}: a middle frame equals the true one"
            continue
        interval = None
        if num_resamples and len(records) > 1:
            low, high = bootstrap_interval(
                statistic.of,
                len(records),
                num_resamples=num_resamples,
                confidence=confidence,
                seed=seed,
            )
            interval = max(low, MEASURES[name].low), min(high, MEASURES[name].high)
        network = [networks[need] for need in MEASURES[name].needs if need in networks]
        results.append(
            Result(
                measure=name,
                value=value,
                interval=interval,
                protocol=protocol.name,
                num_sequences=len(records),
                num_frames=records[0].kind.num_frames,
                resolution=records[0].kind.resolution,
                backbone=_name(network[0]) if network else None,
                sets=statistic.sets,
                per_sequence=statistic.per_sequence,
            )
        )
    missing = {name: missing[name] for name in protocol.measures if name in missing}
    if not results:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
        raise ValueError(f"No measure of protocol {protocol.name} could be computed: {reasons}")
    cautions = _cautions(records, protocol, num_resamples)
    for caution in cautions:
        warnings.warn(caution, stacklevel=2)
    return Evaluation(
        protocol=protocol,
        sequences=tuple(record.name for record in records),
        results=tuple(results),
        missing=missing,
        warnings=tuple(cautions),
        confidence=confidence,
        num_resamples=num_resamples,
        seed=seed,
    )


@dataclass(frozen=True)
class _Kind:
    """What all sequences of an evaluation share."""

    num_frames: int
    resolution: tuple[int, int]
    inputs: bool
    truth: bool

    def __str__(self) -> str:
        extras = [f"{'with' if getattr(self, e) else 'without'} {e}" for e in ("inputs", "truth")]
        return f"{self.num_frames} frames of {self.resolution}, {', '.join(extras)}"


@dataclass(frozen=True)
class _Record:
    """What is kept of one sequence."""

    name: str
    kind: _Kind
    values: dict[str, float]
    generated: Tensor | None  # features (draws, frames, d)
    reference: Tensor | None  # features (2, d)
    pasted: bool


@dataclass(frozen=True)
class _Statistic:
    """A measure as a function of the indices of the sequences that it is taken over."""

    of: Statistic
    sets: str
    per_sequence: tuple[float, ...] | None = None


def _networks(protocol, distance, features, device, skip_missing) -> tuple[dict, dict[str, str]]:
    """Networks that the protocol needs, and for each measure without its network the reason."""
    loaders: dict[str, Callable[[], Any]] = {
        "distance": lambda: lpips_distance(protocol.lpips_network, device=device),
        "features": lambda: inception_features(device=device),
        "torchmetrics": lambda: import_extra("torchmetrics"),
    }
    if distance is not None:
        loaders["distance"] = lambda: distance
    if features is not None:
        loaders["features"] = lambda: features
    found: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for need, load in loaders.items():
        users = [name for name in protocol.measures if need in MEASURES[name].needs]
        try:
            if users:
                found[need] = load()
        except (ImportError, OSError) as error:
            if not skip_missing:
                raise
            missing = dict.fromkeys(users, str(error)) | missing
    found.pop("torchmetrics", None)
    return found, missing


@torch.no_grad()
def _measure(sequence, protocol, wanted, networks, max_batch_size, generator) -> _Record:
    """Measures of one sequence; those that need data which it lacks are left out."""
    frames = _pixels(sequence.frames, sequence.name, "frames")
    kind = _Kind(
        len(frames),
        (frames.shape[-2], frames.shape[-1]),
        sequence.inputs is not None,
        sequence.truth is not None,
    )
    protocol.check(sequence.name, kind.num_frames, kind.resolution)
    ends, middle = frames[[0, -1]], frames[1:-1]
    inputs: Tensor | None = None
    truth: Tensor | None = None
    if kind.inputs:
        inputs = _pixels(sequence.inputs, sequence.name, "inputs", ends.shape)
    if kind.truth:
        truth = _pixels(sequence.truth, sequence.name, "truth", middle.shape)

    values: dict[str, float] = {}
    distance = networks.get("distance")
    if any(name in _OF_GAPS for name in wanted):
        gaps = m.adjacent_distances(frames, distance, max_batch_size=max_batch_size)
        values |= {name: float(of(gaps)) for name, of in _OF_GAPS.items() if name in wanted}
    if truth is not None:
        wide, true = middle.double(), truth.double()
        for name, of in _OF_TRUTH.items():
            if name in wanted:
                values[name] = float(of(wide, true).mean())
        if "lpips" in wanted:
            apart = m.distances(middle, truth, distance, max_batch_size=max_batch_size)
            values["lpips"] = float(apart.mean())
    if inputs is not None and "re" in wanted:
        values["re"] = float(m.mse(ends.double(), inputs.double()).mean())
    if "largest_step" in wanted:
        values["largest_step"] = float(m.largest_step(frames.double()))

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
    return _Record(sequence.name, kind, values, generated, reference, pasted)


def _lacking(records, wanted) -> dict[str, str]:
    """Why measures have no number for want of data."""
    kind, generated = records[0].kind, records[0].generated
    absent = [need for need in _ABSENT if not getattr(kind, need)]
    missing = {}
    for name in wanted:
        for need in absent:
            if need in MEASURES[name].needs:
                missing[name] = _ABSENT[need]
        if "features" in MEASURES[name].needs and len(records) * generated.shape[1] < 2:
            missing[name] = "a set of one frame has no spread"
    return missing


def _statistics(records, protocol, missing) -> dict[str, _Statistic]:
    """Every measure that is not missing as a function of the sequences."""
    statistics = {}
    for name in protocol.measures:
        if name in missing:
            continue
        if "features" in MEASURES[name].needs:
            generated = torch.stack([r.generated for r in records], 1)  # (draws, S, frames, d)
            reference = torch.stack([r.reference for r in records])  # (S, 2, d)
            build = frechet_statistic if name == "fid" else kernel_statistic
            statistics[name] = _Statistic(build(generated, reference), _sets(records, protocol))
        else:
            values = torch.tensor([r.values[name] for r in records], dtype=torch.float64)
            sets = f"{len(records)} sequences of {records[0].kind.num_frames} frames"
            statistics[name] = _Statistic(_mean_of(values), sets, tuple(values.tolist()))
    return statistics


def _mean_of(values: Tensor) -> Statistic:
    return lambda index: values[index].mean()


def _sets(records, protocol) -> str:
    kind, generated = records[0].kind, records[0].generated
    count = len(records) * generated.shape[1]
    frames = f"{protocol.set_frames} frames" if protocol.num_sampled is None else "frames"
    if protocol.num_sampled is not None:
        pool = "" if protocol.set_frames == "all" else "interior "
        frames = (
            f"random {pool}frames ({protocol.num_sampled} of each sequence, mean of "
            f"{protocol.num_draws} draws)"
        )
    against = "inputs" if kind.inputs else "first and last frames"
    return f"{count} {frames} against {2 * len(records)} {against}"


def _cautions(records, protocol, num_resamples) -> list[str]:
    cautions = []
    if "fid" in protocol.measures and records[0].generated is not None:
        _, per_sequence, num_features = records[0].generated.shape
        caution = too_small_for_fid(len(records) * per_sequence, 2 * len(records), num_features)
        cautions += [] if caution is None else [caution]
    pasted = [record.name for record in records if record.pasted]
    if pasted:
        cautions.append(
            f"The first and last frames of {len(pasted)} of {len(records)} sequences are the input "
            f"images themselves ({pasted[0]}): pasted end points flatter FID, LPIPS and RE. "
            "Evaluate raw frames."
        )
    if num_resamples and len(records) == 1:
        cautions.append("One sequence has no bootstrap interval.")
    elif num_resamples and len(records) < FEW_SEQUENCES:
        cautions.append(f"Intervals over {len(records)} sequences are too narrow.")
    return cautions


def _features(images: Tensor, features: Features, max_batch_size: int) -> Tensor:
    """Features `(N, d)` of images, float64, on the CPU."""
    pieces = []
    for batch in images.split(max_batch_size):
        piece = features(batch)
        if piece.ndim != 2 or len(piece) != len(batch) or piece.shape[1] == 0:
            raise ValueError(
                f"`features` must return ({len(batch)}, d) for {len(batch)} images, but got "
                f"{tuple(piece.shape)}."
            )
        pieces.append(piece.detach().cpu().double())
    result = torch.cat(pieces)
    if not result.isfinite().all():
        raise ValueError("`features` must return finite values.")
    return result


def _pixels(images: Tensor, name: str, what: str, shape: torch.Size | None = None) -> Tensor:
    """Images as floats in [0, 1], checked."""
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


def _named(protocol: Protocol | str) -> Protocol:
    if isinstance(protocol, str):
        if protocol not in PROTOCOLS:
            raise ValueError(
                f"`protocol` must be one of {', '.join(PROTOCOLS)} or a Protocol, but got "
                f"{protocol!r}."
            )
        return PROTOCOLS[protocol]
    return protocol


def _name(network) -> str:
    given = getattr(network, "__name__", type(network).__name__)
    return getattr(network, "name", None) or f"{given} (passed in)"


def _check(max_batch_size: int, num_resamples: int, confidence: float) -> None:
    if max_batch_size < 1:
        raise ValueError(f"`max_batch_size` must be at least 1, but got {max_batch_size}.")
    if num_resamples < 0:
        raise ValueError(f"`num_resamples` must not be negative, but got {num_resamples}.")
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must be in (0, 1), but got {confidence}.")
