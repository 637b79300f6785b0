"""Results of an evaluation: values of measures, together with their protocol."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from riemannian_diffusion.evaluation.definitions import MEASURES
from riemannian_diffusion.evaluation.protocols import Protocol


@dataclass(frozen=True)
class Result:
    """The value of one measure, and everything on which it depends.

    Attributes:
        measure: Name of the measure, a key of `MEASURES`.
        value: The value.
        interval: Confidence interval over sequences, or None. It comes from `mean_interval` for a
            mean over sequences, and from `jackknife_interval` for FID and KID.
        protocol: Name of the protocol.
        num_sequences: Number of sequences.
        num_frames: Number of frames of each sequence.
        resolution: Height and width of the frames.
        backbone: Name of the network, or None.
        sets: Description of the compared sets, with counts.
        per_sequence: One value per sequence, or None for a distance between sets.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion.evaluation import FrameSequence, evaluate
        >>> frames = torch.linspace(0, 1, 5).view(5, 1, 1, 1).expand(5, 3, 16, 16)
        >>> def pixels(x, y):
        ...     return (x - y).abs().flatten(1).mean(1)
        >>> one = FrameSequence('a', frames)
        >>> found = evaluate([one], 'any', distance=pixels, skip_missing=True)
        >>> found['ppl'].num_frames
        5
    """

    measure: str
    value: float
    interval: tuple[float, float] | None
    protocol: str
    num_sequences: int
    num_frames: int
    resolution: tuple[int, int]
    backbone: str | None
    sets: str
    per_sequence: tuple[float, ...] | None

    def as_dict(self) -> dict:
        """All attributes and the definition of the measure, as values for JSON."""
        measure = MEASURES[self.measure]
        about = {k: getattr(measure, k) for k in ("definition", "range", "direction")}
        return asdict(self) | about


@dataclass(frozen=True)
class Evaluation:
    """Results of `evaluate`.

    Attributes:
        protocol: The protocol.
        sequences: Names of the sequences.
        results: One result per measure that could be computed, in the order of the protocol.
        missing: For each other measure, by name, the reason why it has no value.
        warnings: Sentences that say how far the values can be trusted.
        confidence: Probability that an interval covers the expected value.
        num_resamples: Largest number of resamples for an interval of FID or KID; 0 means that there
            are no intervals.
        seed: Seed of the resamples and of the protocol's random frames.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion.evaluation import FrameSequence, evaluate
        >>> frames = torch.linspace(0, 1, 5).view(5, 1, 1, 1).expand(5, 3, 16, 16)
        >>> def pixels(x, y):
        ...     return (x - y).abs().flatten(1).mean(1)
        >>> one = FrameSequence('a', frames)
        >>> found = evaluate([one], 'any', distance=pixels, skip_missing=True)
        >>> found.sequences
        ('a',)
    """

    protocol: Protocol
    sequences: tuple[str, ...]
    results: tuple[Result, ...]
    missing: dict[str, str]
    warnings: tuple[str, ...]
    confidence: float
    num_resamples: int
    seed: int

    def __getitem__(self, measure: str) -> Result:
        """The result of a measure.

        Raises:
            KeyError: If the measure has no result; the message says why.
        """
        for result in self.results:
            if result.measure == measure:
                return result
        raise KeyError(f"{measure}: {self.missing.get(measure, 'not in this protocol')}")

    def as_dict(self) -> dict:
        """All results as values for JSON; all numbers are finite."""
        return {
            "protocol": asdict(self.protocol),
            "sequences": list(self.sequences),
            "results": {result.measure: result.as_dict() for result in self.results},
            "missing": self.missing,
            "warnings": list(self.warnings),
            "intervals": {
                "mean": "Student's t with Hall's correction for skewness, over sequences",
                "fid, kid": "jackknife over sequences, corrected for interactions of pairs",
                "confidence": self.confidence,
                "num_resamples": self.num_resamples,
            },
            "seed": self.seed,
        }

    def table(self) -> str:
        """A text table: one row per measure, missing measures, note of the protocol, warnings."""
        first = self.results[0]
        height, width = first.resolution
        rows = [("measure", "value", f"{100 * self.confidence:g} % interval", "better", "of")]
        for result in self.results:
            interval = "-"
            if result.interval is not None:
                interval = "[{:.4g}, {:.4g}]".format(*result.interval)
            of = result.sets if result.backbone is None else f"{result.sets}; {result.backbone}"
            better = MEASURES[result.measure].direction
            rows.append((result.measure, f"{result.value:.4g}", interval, better, of))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [
            f"protocol {self.protocol.name}: {first.num_sequences} sequences of "
            f"{first.num_frames} frames, {width} x {height} px, seed {self.seed}"
        ]
        for *cells, of in rows:
            padded = [cell.ljust(w) for cell, w in zip(cells, widths, strict=True)]
            lines.append("  ".join([*padded, of]))
        for reason in dict.fromkeys(self.missing.values()):  # names each reason once
            names = [name for name, given in self.missing.items() if given == reason]
            lines.append(f"missing {', '.join(names)}: {reason}")
        if self.protocol.note:
            lines.append(f"note: {self.protocol.note}")
        lines += [f"warning: {sentence}" for sentence in self.warnings]
        return "\n".join(lines)
