"""Compute the measures of a protocol from frame sequences."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from riemannian_diffusion.evaluation.definitions import MEASURES
from riemannian_diffusion.evaluation.distributions import (
    Features,
    Statistic,
    frechet_statistic,
    kernel_statistic,
    too_small_for_fid,
)
from riemannian_diffusion.evaluation.intervals import (
    MIN_SEQUENCES,
    MIN_VALUES,
    jackknife_interval,
    mean_interval,
)
from riemannian_diffusion.evaluation.protocols import PROTOCOLS, Protocol
from riemannian_diffusion.evaluation.records import Record, measure
from riemannian_diffusion.evaluation.results import Evaluation, Result
from riemannian_diffusion.evaluation.sequences import FrameSequence
from riemannian_diffusion.measures import Distance, inception_features, lpips_distance
from riemannian_diffusion.measures.frames import import_extra

FEW_SEQUENCES = 10  # with fewer, intervals of skewed values cover less than they state

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
    num_resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
    skip_missing: bool = False,
) -> Evaluation:
    """Compute the measures of a protocol from sequences of frames.

    Pass all frames as the model made them. If the original images replace the first and last
    frames, FID and LPIPS look better than they are.

    Args:
        sequences: Sequences with equal numbers of frames and equal sizes. Either all or none have
            inputs, and either all or none have true frames. They are read once, so a generator can
            load them one by one.
        protocol: A `Protocol`, or the name of one in `PROTOCOLS`.
        distance: A function that replaces LPIPS: `(x, y) -> (N,)` for images `(N, 3, H, W)` in
            [0, 1]. Results show its attribute `name`, or its type.
        features: A function that replaces Inception: `x -> (N, d)` for images `(N, 3, H, W)` in
            [0, 1]. Results show its attribute `name`, or its type.
        device: Device of LPIPS and Inception.
        max_batch_size: Largest number of images in one call of a network, at least 1.
        num_resamples: Largest number of resamples that leave out two sequences, for the intervals
            of FID and KID; 0 for no intervals, otherwise at least 2.
        confidence: Probability that an interval covers the expected value, in (0, 1).
        seed: Seed of the random resamples and of the protocol's random frames.
        skip_missing: Whether to skip measures whose network or library is missing, instead of
            raising an error. `Evaluation.missing` lists them. If scipy is missing, intervals are
            left out. Measures that need data which the sequences lack are always skipped.

    Returns:
        The `Evaluation`. Means have intervals from 3 sequences on, FID and KID from 5 sequences on.

    Warns:
        UserWarning: For each sentence of `Evaluation.warnings`: sets that are too small for FID,
            end frames that are the input images, or too few sequences for an interval.

    Raises:
        ImportError: If a library of the `eval` extra is missing.
        OSError: If the weights of a network are missing; the message names the file.
        ValueError: If an argument is out of range, a sequence does not fit the protocol, or no
            measure could be computed.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion.evaluation import FrameSequence, evaluate
        >>> frames = torch.linspace(0, 1, 5).view(5, 1, 1, 1).expand(5, 3, 16, 16)
        >>> def pixels(x, y):
        ...     return (x - y).abs().flatten(1).mean(1)
        >>> one = FrameSequence('a', frames)
        >>> found = evaluate([one], 'any', distance=pixels, skip_missing=True)
        >>> round(found['ppl'].value, 3)
        1.0
    """
    protocol = _named(protocol)
    _check(max_batch_size, num_resamples, confidence)
    networks, missing = _networks(protocol, distance, features, device, skip_missing)
    no_intervals = _reason_for_no_intervals(skip_missing) if num_resamples else None
    wanted = [name for name in protocol.measures if name not in missing]
    generator = torch.Generator().manual_seed(seed)
    records: list[Record] = []
    for sequence in sequences:
        records.append(measure(sequence, protocol, wanted, networks, max_batch_size, generator))
        if records[-1].kind != records[0].kind:
            raise ValueError(
                f"All sequences must be of one kind, but {records[0].name} is "
                f"{records[0].kind} and {records[-1].name} is {records[-1].kind}."
            )
    if not records:
        raise ValueError("`sequences` is empty: pass at least one FrameSequence.")
    missing |= _lacking(records, wanted)
    results = []
    for name, statistic in _statistics(records, protocol, missing).items():
        if not math.isfinite(statistic.value):
            missing[name] = f"it is {statistic.value}: a middle frame equals the true one"
            continue
        interval = None
        if num_resamples and no_intervals is None:
            interval = _interval(statistic, len(records), num_resamples, confidence, seed)
        if interval is not None:
            low, high = interval
            interval = max(low, MEASURES[name].low), min(high, MEASURES[name].high)
        network = [networks[need] for need in MEASURES[name].needs if need in networks]
        results.append(
            Result(
                measure=name,
                value=statistic.value,
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
    cautions = _cautions(records, protocol)
    if num_resamples:
        cautions += [no_intervals] if no_intervals else _cautions_on_intervals(results)
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
class _Statistic:
    """A measure over all sequences.

    Attributes:
        value: The value.
        sets: Description of the compared sets, with counts.
        per_sequence: One value per sequence if the measure is a mean over sequences, else None.
        of: The measure as a function of indices of sequences if it is not a mean, else None.
    """

    value: float
    sets: str
    per_sequence: tuple[float, ...] | None = None
    of: Statistic | None = None


def _interval(
    statistic: _Statistic, num_sequences: int, num_pairs: int, confidence: float, seed: int
) -> tuple[float, float] | None:
    """Confidence interval of a measure, or None if there are too few sequences."""
    if statistic.per_sequence is not None:
        if num_sequences < MIN_VALUES:
            return None
        values = torch.tensor(statistic.per_sequence, dtype=torch.float64)
        return mean_interval(values, confidence=confidence)
    if num_sequences < MIN_SEQUENCES or statistic.of is None:
        return None
    return jackknife_interval(
        statistic.of, num_sequences, num_pairs=num_pairs, confidence=confidence, seed=seed
    )


def _reason_for_no_intervals(skip_missing: bool) -> str | None:
    """Why no interval can be computed, or None; scipy is missing and `skip_missing` allows it."""
    try:
        import_extra("scipy.stats")
    except ImportError as error:
        if not skip_missing:
            raise
        return f"There are no intervals: {error}"
    return None


def _networks(protocol, distance, features, device, skip_missing) -> tuple[dict, dict[str, str]]:
    """The networks that the protocol needs, and reasons for measures without their network."""
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


def _lacking(records, wanted) -> dict[str, str]:
    """Reasons for measures whose data the sequences lack, by name of the measure."""
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
    """All measures over all sequences, without those that are missing."""
    statistics = {}
    for name in protocol.measures:
        if name in missing:
            continue
        if "features" in MEASURES[name].needs:
            generated = torch.stack([r.generated for r in records], 1)  # (draws, S, frames, d)
            reference = torch.stack([r.reference for r in records])  # (S, 2, d)
            build = frechet_statistic if name == "fid" else kernel_statistic
            of = build(generated, reference)
            value = float(of(torch.arange(len(records))))
            statistics[name] = _Statistic(value, _sets(records, protocol), of=of)
        else:
            values = [r.values[name] for r in records]
            sets = f"{len(records)} sequences of {records[0].kind.num_frames} frames"
            statistics[name] = _Statistic(sum(values) / len(values), sets, tuple(values))
    return statistics


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


def _cautions(records, protocol) -> list[str]:
    """Warnings about the frames and the sizes of the sets."""
    cautions = []
    if "fid" in protocol.measures and records[0].generated is not None:
        _, per_sequence, num_features = records[0].generated.shape
        caution = too_small_for_fid(len(records) * per_sequence, 2 * len(records), num_features)
        cautions += [] if caution is None else [caution]
    pasted = [record.name for record in records if record.pasted]
    if pasted:
        cautions.append(
            f"The first and last frames of {len(pasted)} of {len(records)} sequences are the input "
            f"images themselves ({pasted[0]}). FID, LPIPS and RE look better than they are. "
            "Evaluate the frames as the model made them."
        )
    return cautions


def _cautions_on_intervals(results) -> list[str]:
    """Warnings about intervals from few sequences."""
    num = results[0].num_sequences
    means = any(result.per_sequence is not None for result in results)
    sets = [result.measure.upper() for result in results if result.per_sequence is None]
    cautions = []
    if means and num < MIN_VALUES:
        cautions.append(f"Means have no interval: they need {MIN_VALUES} sequences, not {num}.")
    elif means and num < FEW_SEQUENCES:
        cautions.append(
            f"Intervals of means over {num} sequences cover less than they state if the values are "
            f"strongly skewed. Use at least {FEW_SEQUENCES} sequences."
        )
    if sets and num < MIN_SEQUENCES:
        cautions.append(
            f"{' and '.join(sets)} have no interval: they need {MIN_SEQUENCES} sequences, "
            f"not {num}."
        )
    return cautions


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
    if num_resamples < 0 or num_resamples == 1:
        raise ValueError(f"`num_resamples` must be 0 or at least 2, but got {num_resamples}.")
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must be in (0, 1), but got {confidence}.")
