"""The outcome of an evaluation: numbers that carry their protocol with them."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from riemannian_diffusion.evaluation.definitions import MEASURES
from riemannian_diffusion.evaluation.protocols import Protocol


@dataclass(frozen=True)
class Result:
    """One number, and everything it depends on.

    Attributes:
        measure: Name, a key of `MEASURES`.
        value: The number.
        interval: Bootstrap interval over sequences, or None (see `bootstrap_interval`).
        protocol: Name of the protocol.
        num_sequences: Sequences it is taken over.
        num_frames: Frames of each.
        resolution: Their height and width.
        backbone: The network behind it, or None.
        sets: What was compared, with counts.
        per_sequence: One value per sequence, or None for a measure of sets.
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
        """All of it, with the measure's definition, for JSON."""
        measure = MEASURES[self.measure]
        about = {k: getattr(measure, k) for k in ("definition", "range", "direction")}
        return asdict(self) | about


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` returns.

    Attributes:
        protocol: The protocol.
        sequences: Names of the sequences.
        results: One per measure that could be computed, in the protocol's order.
        missing: Why the other measures have no number, by name.
        warnings: Sentences on how far the numbers can be trusted.
        confidence: Of the intervals.
        num_resamples: Behind the intervals.
        seed: Of the resampling and of the protocol's random frames.
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
            KeyError: If it has none; the message says why.
        """
        for result in self.results:
            if result.measure == measure:
                return result
        raise KeyError(f"{measure}: {self.missing.get(measure, 'not in this protocol')}")

    def as_dict(self) -> dict:
        """Plain values for JSON; all numbers are finite."""
        return {
            "protocol": asdict(self.protocol),
            "sequences": list(self.sequences),
            "results": {result.measure: result.as_dict() for result in self.results},
            "missing": self.missing,
            "warnings": list(self.warnings),
            "intervals": {
                "method": "percentile bootstrap over sequences, centred on the value",
                "confidence": self.confidence,
                "num_resamples": self.num_resamples,
            },
            "seed": self.seed,
        }

    def table(self) -> str:
        """The numbers as text, a row each, then what is missing and the warnings."""
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
        for reason in dict.fromkeys(self.missing.values()):  # each once
            names = [name for name, given in self.missing.items() if given == reason]
            lines.append(f"missing {', '.join(names)}: {reason}")
        lines += [f"warning: {sentence}" for sentence in self.warnings]
        return "\n".join(lines)
