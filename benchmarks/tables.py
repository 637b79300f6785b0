"""Tables of both READMEs, the project's and that of this folder, from the files in `results`.

    python benchmarks/tables.py [--check]

Each table stands between `<!-- table: NAME -->` and `<!-- /table -->`. Without options both
are rewritten; with `--check` they stay as they are, and the exit status is 1 if a table differs.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import gpu_report

README = Path(__file__).with_name("README.md")
FRONT = Path(__file__).parents[1] / "README.md"  # of the project
RESULTS = Path(__file__).with_name("results")
BLOCK = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- /table -->)", re.DOTALL)


@dataclass(frozen=True)
class Column:
    """A column of measurements.

    Attributes:
        title: Head of the column.
        text: Format of a cell, with keys of a row of results in braces.
        where: Keys and values that select the row of results, together with those of the line.
    """

    title: str
    text: str
    where: Mapping = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """A line of a table.

    Attributes:
        labels: Texts of the first cells.
        where: Keys and values that select the row of results, together with those of the column.
    """

    labels: tuple[str, ...]
    where: Mapping


@dataclass(frozen=True)
class Table:
    """A table. The key "file" of `where` names the file of results, without date and machine."""

    heads: tuple[str, ...]
    columns: Sequence[Column]
    lines: Sequence[Line]

    def render(self) -> str:
        """The table in Markdown.

        Raises:
            ValueError: If a line or a column finds no result, or a cell finds more than one.
        """
        cells = [[_cell(line, column) for column in self.columns] for line in self.lines]
        for line, row in zip(self.lines, cells, strict=True):
            if not any(row):
                raise ValueError(f"No result for the line {line.labels}: {dict(line.where)}.")
        for column, rows in zip(self.columns, zip(*cells, strict=True), strict=True):
            if not any(rows):
                raise ValueError(f"No result for the column {column.title!r}: {column.where}.")
        head = [*self.heads, *(column.title for column in self.columns)]
        body = [[*line.labels, *row] for line, row in zip(self.lines, cells, strict=True)]
        return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *body))


class GpuReport:
    """The tables of all steps of `gpu.py`, as soon as a GPU has run them."""

    def render(self) -> str:
        """The tables in Markdown."""
        return gpu_report.report(RESULTS)


class _Missing:
    def __format__(self, spec: str) -> str:
        return "–"


@cache
def results(name: str) -> list[dict]:
    """Rows of the newest results with a name, such as "cost_sd15", on any device."""
    paths = sorted(
        path
        for device in ("cpu", "cuda")
        for path in RESULTS.glob(f"????-??-??_{name}_{device}.json")
    )
    if not paths:
        raise ValueError(f"{RESULTS} has no results of {name!r}.")
    return json.loads(paths[-1].read_text())["rows"]


def select(rows: Sequence[dict], **where) -> list[dict]:
    """The rows that have all these values. The value None also selects rows without that key."""
    return [row for row in rows if all(row.get(key) == value for key, value in where.items())]


def _cell(line: Line, column: Column) -> str:
    where = {**line.where, **column.where}
    found = select(results(where.pop("file")), **where)
    if len(found) > 1:
        raise ValueError(f"{len(found)} results for {where}; one is needed.")
    if not found:
        return ""
    return column.text.format_map({k: _Missing() if v is None else v for k, v in found[0].items()})


METHODS = {
    "lerp": "lerp",
    "slerp": "slerp",
    "nao": "NAO",
    "noise_diffusion": "NoiseDiffusion",
    "density": "density geodesic",
    "stein": "Stein",
    "score_jacobian": "score Jacobian",
    "tangent_normal": "tangent-normal",
    "clean": "tangent-normal, clean space",
    "roadmap": "roadmap",
    "roadmap, relaxed": "roadmap, relaxed",
    "both starts": "both starts",
}
PUBLISHED = tuple(METHODS)[:8]
GEOMETRIES = (  # name, space and label
    ("lerp", "noise", "lerp"),
    ("slerp", "noise", "slerp"),
    ("COG", "noise", "COG"),
    ("split", "noise", "`split`"),
    ("NAO", "noise", "NAO"),
    ("NoiseDiffusion", "noise", "NoiseDiffusion"),
    ("density geodesic", "noise", "density geodesic"),
    ("Stein", "noise", "Stein, its recipe"),
    ("score Jacobian", "noise", "score Jacobian, its recipe"),
    ("likely", "noise", "likely"),
    ("tangent-normal", "noise", "tangent-normal"),
    ("straight line", "clean", "straight line"),
    ("Fisher-Rao", "clean", "Fisher-Rao"),
    ("density", "clean", "density"),
    ("force matching", "clean", "force matching"),
    ("likely", "clean", "likely"),
    ("Stein", "clean", "Stein"),
    ("Stein, full gradient", "clean", "Stein, full gradient"),
    ("mixture", "clean", "mixture"),
    ("score Jacobian", "clean", "score Jacobian"),
    ("tangent-normal", "clean", "tangent-normal"),
    ("roadmap", "clean", "roadmap"),
    ("both starts, then finer", "clean", "both starts, solved"),
    ("relax", "clean", "**both starts, relaxed**"),
)
MANIFOLDS = {
    "C-shape": "C-shape",
    "two moons": "two moons",
    "swiss roll in R^20": "swiss roll",
    "circle in R^32": "circle",
    "uneven circle in R^8": "uneven circle",
    "flat torus in R^6": "torus",
    **{f"{k}-sphere in R^100": f"{k}-sphere" for k in (1, 2, 3, 5, 10)},
}


HELD_OUT = {
    "limacon": "limacon",
    "spiral": "spiral",
    "tennis ball": "tennis ball",
    "Lissajous curve": "Lissajous curve",
    "(2, 5) torus knot": "torus knot",
    "random Fourier curve in R^20": "Fourier curve",
}


def _values(*keys: str) -> list[Column]:
    """Columns with one value in each cell, given as "key:format" or "title=key:format"."""
    return [
        Column(title or key.partition(":")[0], f"{{{key}}}")
        for title, _, key in (("", "", k) if "=" not in k else k.partition("=") for k in keys)
    ]


def _lines(key: str, names: Mapping | Sequence, **where) -> Iterator[Line]:
    """One line for each value of a key. A mapping gives a label for each value."""
    for value in names:
        label = names[value] if isinstance(names, Mapping) else str(value)
        yield Line((label,), {key: value, **where})


def _errors(file: str, manifolds: Mapping[str, str], *samples: str) -> Table:
    """Errors of all geometries on some manifolds, for "lattice", "random" or both."""
    text = " / ".join(f"{{{name}:.2g}}" for name in samples)
    columns = [Column(title, text, {"manifold": name}) for name, title in manifolds.items()]
    return Table(("geometry", "space"), columns, _geometries(file))


def _medians(file: str, *, random: bool) -> Table:
    """Medians of all geometries over all manifolds."""
    lattice, others = ({"manifold": "median", "samples": s} for s in ("lattice", "random"))
    columns = [
        Column("error", "{error:.2g}", lattice),
        Column("at its own pace", "{own pace:.2g}", lattice),
        Column("largest step", "{jump:.2f}", lattice),
        Column("length", "{len:.3f}", lattice),
        Column("points", "{points:.0f}", lattice),
        Column("with gradient", "{with gradient:.0f}", lattice),
        Column("failed", "{failed} of {rows}", lattice),
    ]
    if random:
        columns += [
            Column("error, random", "{error:.2g}", others),
            Column("at its own pace, random", "{own pace:.2g}", others),
            Column("failed, random", "{failed} of {rows}", others),
        ]
    return Table(("geometry", "space"), columns, _geometries(file))


def _geometries(file: str) -> list[Line]:
    """One line for each geometry. Rows without samples are those of `_errors`."""
    return [
        Line((label, space), {"file": file, "samples": None, "geometry": name, "space": space})
        for name, space, label in GEOMETRIES
    ]


FEATURES = ("one distribution", "shifted", "far apart", "wider", "linked to inputs", "128 features")
INTERVALS = {
    "mean": ("normal", "lognormal, sigma 0.5", "exponential", "lognormal, sigma 1"),
    "fid": FEATURES,
    "kid": FEATURES,
}
CLAIMS = {"file": "claims"}
PASSES_PAIRS = ["shipped", *(f"{use} {i}" for use in ("tuning", "reporting") for i in range(1, 6))]
ENERGIES = (
    *("circle in R^32", "circle in R^32, noise 0.05", "circle in R^32, noise 0.025"),
    *("uneven circle in R^8", "uneven circle in R^8, noise 0.025"),
    *(f"two circles, gap {gap:.2f}" for gap in (0.5, 1, 2, 4)),
    *(f"two clouds of radius 0, gap {gap:.2f}, seed 0" for gap in (0.5, 1, 2, 4)),
)
C_SHAPE = {"file": "c_shape_11", "manifold": "C-shape", "samples": "lattice"}
DIGITS = _values(
    *("on:.0%", "distance:.3f", "angle:.1f", "rms:.3f", "jump:.3f"),
    *("PSNR:.1f", "SSIM:.3f", "FID:.1f", "evals:.0f"),
)
FEWER = _values("paths", "on:.0%", "distance:.3f", "angle:.1f", "rms:.3f", "jump:.3f", "evals:.0f")
EXACT, STARTS = "rotated_mnist_exact", "rotated_mnist_exact_starts"
LEARNED = "rotated_mnist_learned"
UNSEEN = "rotated_mnist_unseen"
ON_UNSEEN = (
    *("lerp", "slerp", "score_jacobian", "tangent_normal", "clean"),
    *("roadmap, relaxed", "both starts"),
)
AT_60 = {"degrees": 60, "beyond": 0}
STILL = {
    "still": "standing still",
    "straight": "straight on in clean latents",
    "extrapolate": "`extrapolate`",
}
WALKS = {
    "lerp": "lerp",
    "slerp": "slerp",
    "walk": "last direction, denoised at the end",
    "extrapolate": "`extrapolate`",
}
SCENES = {name: METHODS[name] for name in PUBLISHED} | {
    "clean": "tangent-normal, clean space",
    "noise, then clean": "tangent-normal, then clean space",
}
PAIRS = {
    **{"1": "cube, azimuth", "2": "cone, hue", "3": "sphere, size", "4": "cylinder, x"},
    **{"5": "torus, y", "6": "torus, all factors", "7": "cube, all factors"},
    **{"8": "cone, all factors", "mean": "mean"},
}
GUIDANCE = {
    "plain": "plain",
    "rescale": "rescaled by 0.7",
    "half": "`ManifoldGuidedScore`, damping 1/2",
    "manifold": "`ManifoldGuidedScore`, damping 1",
}
RULES = GUIDANCE | {
    "cg 1": "`cg 1`: (I + J_r^T J_r)^-1 g",
    "along n": "`along n`: g - a n",
    "apg": "APG",
    "apg eps": "APG on the noise",
    "tcfg": "TCFG",
    "mog": "MOG",
}
# Formats of both comparisons.
AT_EQUAL_PROBABILITY = "{mean:.2f} / {worst:.2f} / {last:.2f}"
AT_EQUAL_WEIGHT = "{mean:.2f} / {worst:.2f} / {change:+.3f}"
MIXTURES = (
    *("quarters of a circle, spread 0.01", "quarters of a circle, spread 0.1"),
    *("two crossing circles, spread 0.01", "two crossing circles, spread 0.1"),
    "concentric circles, spread 0.06",
)
COST = {
    "energy, gradient": "energy and gradient, all points at once",
    **{f"in chunks of {size}": f"energy and gradient, chunks of {size}" for size in (16, 8, 4, 1)},
    "J v": "one forward-mode product per point",
    "J v, 4 tangents": "four forward-mode products at one point under vmap",
    "forward-mode energy": "the papers' energy by forward-mode products, and its gradient",
}
POINTS = (9, 17, 33, 65, 129)
VARIANTS = ("plain", "embeddings", "LoRA", "both")

REFERENCE_CASES = (
    *("plain", "slerp", "jacobian", "stein", "three", "clean", "extrapolated", "retimed"),
    *("analogy", "roadmap", "guided", "density", "damped", "matched", "adapted"),
)

COMPARED = ("four metrics", "four curves", "re-time a path", "extend a path by half")

INVERSION_RULES = {"none": "no iterations", "five": "five iterations", "default": "default"}
INVERSION_PROBLEMS = {
    "pair": "the shipped pair",
    "scenes": "held-out scenes",
    "unknown": "unknown pictures",
    "mixture, draws": "mixtures in R^3, draws",
    "mixture, anywhere": "mixtures in R^3, anywhere",
}

SAMPLING_PROBLEMS = {
    "pair": ("the shipped pair", "sampling_pair"),
    "guided": ("the same, guidance 3", "sampling_guided"),
    "mixture": ("mixtures", "sampling_mixtures"),
    "flow": ("mixtures as flows", "sampling_mixtures"),
}
SAMPLING_METHODS = {"ddim": "DDIM", "ab2": "AB2", "midpoint": "midpoint", "belm": "O-BELM"}

IMPORTS = (
    *("import torch", "riemannian-diffusion --help", "import riemannian_diffusion"),
    *("the geometry", "the pipelines"),
)

PEERS = {  # space and method of `peers.py`
    ("clean", "ours"): "**ours**",
    ("clean", "Stein"): "Stein, its recipe",
    ("clean", "score Jacobian"): "score Jacobian, its recipe",
    ("noise", "ours"): "**ours**",
    ("noise", "Stein"): "Stein, its recipe",
    ("noise", "score Jacobian"): "score Jacobian, its recipe",
    ("noise", "density"): "density geodesic",
    ("noise", "split"): "`split`",
    ("noise", "slerp"): "slerp",
}
AVERAGE = {"file": "peers", "manifold": None}
PEER_MANIFOLDS = {
    **{"helix": "helix", "trefoil": "trefoil", "2-sphere in R^10": "2-sphere in R^10"},
    **MANIFOLDS,
}
PUBLIC = ("helix", "trefoil", "2-sphere in R^10", "flat torus in R^6")
MODELS = (
    *(f"Stable Diffusion {version}" for version in ("1.5", "2.1", "XL", "3 medium")),
    *("Stable Diffusion 3.5 medium", "Stable Diffusion 3.5 large", "Flux.1 dev"),
    *("Flux.2 klein 4B", "Flux.2 klein 9B", "Flux.2 dev", "Qwen-Image", "Z-Image", "Sana 1.6B"),
    *("PixArt-Sigma", "Lumina 2", "Chroma", "AuraFlow"),
)

TABLES: dict[str, Table | GpuReport] = {
    "gpu": GpuReport(),
    "geometries, exact score": _errors("geometries_exact", MANIFOLDS, "lattice", "random"),
    "geometries, exact score, medians": _medians("geometries_exact", random=True),
    "geometries, learned score": _errors("geometries_learned", MANIFOLDS, "lattice"),
    "geometries, learned score, medians": _medians("geometries_learned", random=False),
    "geometries, learned score, random samples": _errors(
        "geometries_learned_random", dict(list(MANIFOLDS.items())[:6]), "random"
    ),
    "geometries, held-out curves": _errors("geometries_held_out", HELD_OUT, "lattice", "random"),
    "claims, convergence": Table(
        ("cases on",),
        _values("cases", "excess energy=excess:.1e", "distance from the minimum=error:.1e"),
        [
            Line((label,), CLAIMS | {"study": "convergence", "case": case})
            for label, case in {
                "known manifolds": "worst on the data",
                "known manifolds, score Jacobian": "worst, score Jacobian",
                "known manifolds, scores of networks": "worst, network",
                "the shipped model": "worst, shipped model",
            }.items()
        ],
    ),
    "claims, pace": Table(
        ("curves",),
        _values(
            *("cases", "length=length error:.1%", "path=error:.4f", "nodes of the solver=nodes:.4f")
        ),
        [
            Line((label,), CLAIMS | {"study": "pace", "case": f"worst, {label}"})
            for label in ("lattice", "random")
        ],
    ),
    "claims, departures": Table(
        ("what",),
        _values("cases", "wrong"),
        list(_lines("case", ("false alarms", "missed leaps"), study="departures", **CLAIMS)),
    ),
    "claims, energies": Table(
        ("case",),
        _values(
            *("stated=stated:.3f", "optimised=optimised:.3f", "stated change=stated change:.1%"),
            "chords",
        ),
        list(_lines("case", ENERGIES, study="energies", **CLAIMS)),
    ),
    "claims, starts": Table(
        ("start",),
        _values("cases", "refused", "wrong valley=wrong"),
        [
            Line((label,), CLAIMS | {"study": "starts", "case": f"all, {case}"})
            for label, case in {"the default": "default", "slerp": "slerp"}.items()
        ],
    ),
    "claims, images": Table(
        ("what",),
        _values("cases", "wrong"),
        list(_lines("case", ("known images", "unknown images"), study="images", **CLAIMS)),
    ),
    "intervals": Table(
        ("measure", "population", "n"),
        [
            Column(title, "{coverage:.0%} / {width:.2f}", {"method": method})
            for method, title in {
                "percentile": "bootstrap of percentiles",
                "bca": "BCa bootstrap",
                "jackknife": "jackknife",
                "student": "Student's t",
                "new": "**ours**",
            }.items()
        ],
        [
            Line(
                (measure, population, str(num)),
                {"file": "intervals", "measure": measure, "population": population, "n": num},
            )
            for measure, populations in INTERVALS.items()
            for population in populations
            for num in ((3, 5, 10, 30) if measure == "mean" else (5, 10, 30))
        ],
    ),
    "C-shape, ten steps": Table(
        ("method", "space"),
        _values("standard deviation of the steps=std:.4f", "length over the true length=len:.2f"),
        [
            Line((label, space), {"geometry": name, "space": space, **C_SHAPE})
            for name, space, label in GEOMETRIES
            if name in ("slerp", "score Jacobian", "tangent-normal", "relax")
        ],
    ),
    "digits, exact score": Table(
        ("method",),
        [*_values("paths"), *DIGITS],
        [
            *_lines("method", {n: METHODS[n] for n in (*PUBLISHED, "clean")}, file=EXACT, **AT_60),
            Line(("roadmap, relaxed",), {"file": f"{EXACT}_relaxed", "method": "roadmap, relaxed"}),
            *_lines("method", ("roadmap", "both starts"), file=STARTS, **AT_60),
            Line(("continuation, digit 1 only",), {"file": f"{EXACT}_continuation"}),
        ],
    ),
    "digits, three angles": Table(
        ("degrees", "method"),
        FEWER,
        [
            Line(
                (str(degrees), METHODS[name]),
                {"file": file, "degrees": degrees, "beyond": 0, "method": name},
            )
            for degrees in (30, 60, 90)
            for file, names in ((STARTS, ("roadmap", "both starts")), (EXACT, ("slerp", "clean")))
            for name in names
        ],
    ),
    "digits, beyond": Table(
        ("score", "after", "method"),
        FEWER,
        [
            Line(
                (score, f"{degrees} degrees", WALKS[name]),
                {"file": file, "degrees": degrees, "beyond": 30, "method": name},
            )
            for score, degrees, file, names in (
                ("exact", 30, STARTS, WALKS),
                ("exact", 60, STARTS, WALKS),
                ("exact", 90, STARTS, WALKS),
                ("learned", 30, f"{LEARNED}_30", WALKS),
                ("learned", 60, f"{LEARNED}_beyond", WALKS),
            )
            for name in names
        ],
    ),
    "digits, learned score": Table(
        ("method",),
        DIGITS,
        [
            *_lines("method", {n: METHODS[n] for n in PUBLISHED}, file=f"{LEARNED}_published"),
            *_lines("method", ("roadmap", "roadmap, relaxed"), file=f"{LEARNED}_roadmaps"),
        ],
    ),
    "digits, learned score, other angles": Table(
        ("degrees", "method"),
        FEWER,
        [
            Line(
                (str(degrees), METHODS[name]),
                {"file": f"{LEARNED}_{degrees}", "beyond": 0, "method": name},
            )
            for degrees in (30, 90)
            for name in ("lerp", "slerp", "score_jacobian", "roadmap, relaxed")
        ],
    ),
    "digits, unseen": Table(
        ("degrees", "method"),
        [*FEWER[:1], *FEWER[2:], *_values("FID:.0f", "energy:.2f")],
        [
            Line(
                (str(degrees), METHODS[name]),
                {"file": file, "degrees": degrees, "beyond": 0, "method": name},
            )
            for degrees, file, names in (
                (15, f"{UNSEEN}_others", ("lerp", "slerp", "roadmap, relaxed")),
                (30, f"{UNSEEN}_30", ("slerp", "roadmap, relaxed")),
                (60, f"{UNSEEN}_60_more", ON_UNSEEN[:-1]),
                (60, f"{UNSEEN}_60", ON_UNSEEN[-1:]),
                (90, f"{UNSEEN}_others", ("lerp", "slerp", "roadmap, relaxed")),
            )
            for name in names
        ],
    ),
    "digits, unseen, beyond": Table(
        ("after", "method"),
        [*FEWER[:1], *FEWER[2:-1], *_values("error of the last frame=last:.1f")],
        [
            Line(
                (f"{degrees} degrees", WALKS[name]),
                {"file": f"{UNSEEN}_{file}", "degrees": degrees, "beyond": 30, "method": name},
            )
            for degrees, file in ((30, "30"), (60, "60_more"))
            for name in WALKS
        ],
    ),
    "scenes": Table(
        ("method",),
        _values(
            "error to the true geodesic=error:.4f",
            "largest jump=jump:.4f",
            "to the nearest render=render:.4f",
            "length over the true length=length:.2f",
            "middle factor=middle:.3f",
            "evaluations=evals:.0f",
            "seconds=seconds:.0f",
        ),
        list(_lines("method", SCENES, file="scenes", pair="mean")),
    ),
    "scenes by pair": Table(
        ("pair",),
        [
            *(
                Column(f"error of {SCENES[name]}", "{error:.4f}", {"method": name})
                for name in ("slerp", "tangent_normal", "clean", "noise, then clean")
            ),
            Column("length of tangent-normal", "{length:.2f}", {"method": "tangent_normal"}),
        ],
        list(_lines("pair", PAIRS, file="scenes")),
    ),
    "scenes, tolerances with guidance": Table(
        ("tolerance",),
        _values("error:.4f", "largest jump=jump:.4f", "point-passes=passes:.0f"),
        [
            Line((label,), {"file": "scenes_guided", "pair": "mean", "tolerance": tolerance})
            for label, tolerance in {"slerp": None, "0.0001": 1e-4, "0.001": 1e-3}.items()
        ],
    ),
    "scenes, tolerances": Table(
        ("tolerance",),
        [
            Column(f"{title}, {name}", text, {"set": name})
            for name in ("tuning", "reporting")
            for title, text in (
                *(("error", "{error:.4f}"), ("largest jump", "{jump:.4f}")),
                ("point-passes", "{passes:.0f}"),
            )
        ],
        [
            Line((label,), {"file": "scenes_tolerances", "pair": "mean", "tolerance": tolerance})
            for label, tolerance in {
                "slerp": None,
                **{f"{value:g}": value for value in (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)},
            }.items()
        ],
    ),
    "scenes, beyond": Table(
        ("pair",),
        [Column(STILL[name], "{error:.4f} / {render:.4f}", {"method": name}) for name in STILL],
        list(_lines("pair", PAIRS, file="scenes_beyond")),
    ),
    "analogies": Table(
        ("method",),
        [
            Column(
                f"{title} ({num})",
                "{error:.4f} / {render:.4f}",
                {"mean over": title, "analogies": num},
            )
            for title, num in (("all", 12), ("place or size", 6), ("hue or azimuth", 6))
        ],
        list(
            _lines(
                "method",
                {
                    "coded": "D itself, encoded and decoded",
                    "C": "C as it is",
                    "C + B - A": "latents of C + B - A",
                    "denoised": "latents of C + B - A, denoised",
                    "straight": "`analogy` without a path",
                    "pipeline": "`pipe.transport(path, c)`",
                },
                file="analogies",
            )
        ),
    ),
    "guidance, shipped model": Table(
        ("guidance",),
        [
            Column(f"{weight:g}", "{probability:.3f} / {distance:.4f}", {"weight": weight})
            for weight in (1.0, 2.0, 4.0, 8.0, 15.0)
        ],
        list(_lines("method", GUIDANCE, file="guidance_demo")),
    ),
    "guidance, shipped model, compared": Table(
        ("guidance",),
        [
            Column("at equal accuracy", AT_EQUAL_PROBABILITY, {"at": "probability"}),
            Column("at equal weight", AT_EQUAL_WEIGHT, {"at": "weight"}),
        ],
        list(_lines("method", GUIDANCE, file="guidance_demo_compared")),
    ),
    "guidance, shipped model, other rules": Table(
        ("guidance",),
        [
            *(
                Column(f"{weight:g}", "{probability:.3f} / {distance:.4f}", {"weight": weight})
                for weight in (1.0, 2.0, 4.0, 8.0, 15.0)
            ),
            Column("at equal accuracy", AT_EQUAL_PROBABILITY, {"at": "probability"}),
            Column("at equal weight", AT_EQUAL_WEIGHT, {"at": "weight"}),
        ],
        list(
            _lines(
                "method",
                {n: RULES[n] for n in ("plain", "half", "apg", "apg eps", "tcfg", "mog")},
                file="guidance_demo_rules",
            )
        ),
    ),
    "guidance, mixtures, curves": Table(
        ("problem",),
        [
            Column(
                f"{method}, weight {weight}" if weight else method,
                "{probability:.3f} / {distance:.4f}",
                {"method": name, "weight": weight},
            )
            for name, method, weight in (
                ("data", "data", None),
                *(("plain", "plain", weight) for weight in (1, 5, 30)),
                *(("half", "damping 1/2", weight) for weight in (5, 30)),
                *(("manifold", "damping 1", weight) for weight in (5, 30)),
            )
        ],
        list(_lines("problem", MIXTURES, file="guidance_mixtures")),
    ),
    "guidance, mixtures, equal probability": Table(
        ("guidance",),
        [
            Column(problem, AT_EQUAL_PROBABILITY, {"problem": problem, "at": "probability"})
            for problem in MIXTURES
        ],
        list(_lines("method", RULES, file="guidance_mixtures")),
    ),
    "guidance, mixtures, equal weight": Table(
        ("guidance",),
        [
            Column(problem, AT_EQUAL_WEIGHT, {"problem": problem, "at": "weight"})
            for problem in MIXTURES
        ],
        list(_lines("method", RULES, file="guidance_mixtures")),
    ),
    "peers": Table(
        ("method", "space"),
        [
            *_values("point-passes=passes:.0f", "error:.2g", "largest step:.2f"),
            *_values("passes / ours:.1f", "error / ours:.2g", "energy / ours:.2f"),
            *_values(
                *("smaller error", "re-paced smaller=smaller re-paced", "smaller step"),
                *("fewer passes", "manifolds"),
            ),
        ],
        [
            Line(
                (label, space), {"file": "peers", "space": space, "method": name, "manifold": None}
            )
            for (space, name), label in PEERS.items()
        ],
    ),
    "peers, manifolds": Table(
        ("method", "space"),
        [
            Column(title, "{error:.2g} / {largest step:.2f}", {"manifold": name})
            for name, title in PEER_MANIFOLDS.items()
        ],
        [
            Line((label, space), {"file": "peers", "space": space, "method": method})
            for (space, method), label in PEERS.items()
        ],
    ),
    "peers, public code": Table(
        ("manifold",),
        _values(
            *("error:.3f", "public error:.3f", "ratio=error / public:.2f"),
            *("largest step:.2f", "public step:.2f", "ratio of steps=step / public:.2f"),
        ),
        list(_lines("public", PUBLIC, file="peers")),
    ),
    "peers, shipped pair": Table(
        ("method",),
        _values(
            *("point-passes=passes:.0f", "inversion:.0f", "path:.0f", "sampling:.0f"),
            *("energy:.0f", "energy / ours:.2f", "largest step:.2f"),
        ),
        list(
            _lines(
                "method",
                {
                    **{"ours": "**ours**", "Stein": "Stein, its recipe"},
                    "Stein, own ends": "Stein, its recipe and its ends",
                    "score Jacobian": "score Jacobian, its recipe",
                    **{"density": "density geodesic", "split": "`split`", "slerp": "slerp"},
                },
                file="peers_pair",
            )
        ),
    ),
    "model costs": Table(
        ("model",),
        [
            *(
                Column(title, text, {"pixels": 512})
                for title, text in (
                    ("config", "{config}"),
                    ("billions of parameters", "{billions:.1f}"),
                    ("network, GB", "{weights GB:.1f}"),
                    ("text encoders, GB", "{encoders GB:.1f}"),
                )
            ),
            *(
                Column(f"{title}, {pixels} px", text, {"pixels": pixels})
                for title, text in (
                    ("TFLOP per pass", "{TFLOP:.1f}"),
                    ("memory, GB", "{memory GB:.1f}"),
                    ("seconds", "{seconds:.0f}"),
                )
                for pixels in (512, 1024)
            ),
        ],
        list(_lines("model", MODELS, file="model_costs", kind="estimate")),
    ),
    "cost": Table(
        ("operation",),
        [
            Column(title, "{forwards:.2f}", {"file": file})
            for title, file in (("shipped model", "cost"), ("Stable Diffusion 1.5", "cost_sd15"))
        ],
        list(_lines("row", COST)),
    ),
    "cost, forward pass": Table(
        ("network",),
        _values("points", "seconds:.2f", "TFLOP/s:.3f", "share of a matrix product=share:.0%"),
        [
            Line((title,), {"file": file, "row": "forward"})
            for title, file in (("shipped model", "cost"), ("Stable Diffusion 1.5", "cost_sd15"))
        ],
    ),
    "cost, compiled": Table(
        ("shipped model",),
        _values("seconds:.3f", "forward passes=forwards:.2f", "first call, seconds=first call:.0f"),
        list(
            _lines(
                "row",
                ("forward", "forward, compiled", "energy, gradient", "energy, gradient, compiled"),
                file="cost_compiled",
            )
        ),
    ),
    "solvers": Table(
        ("problem",),
        _values(
            "rate:g",
            "energy of the recipe=energy:.4f",
            "its evaluations=recipe evals",
            "L-BFGS=L-BFGS evals",
            "plain L-BFGS=plain L-BFGS evals",
            "ratio of evaluations=ratio of evals:.1f",
            "ratio of time:.1f",
            "ratio of total time:.1f",
        ),
        [
            Line((problem,), {"file": file, "problem": problem, "rate": rate})
            for problem, file in (
                *((f"circle in R^{n}", "solvers") for n in (2, 8, 32)),
                ("2-sphere in R^10", "solvers"),
                ("flat torus in R^6", "solvers"),
                ("shipped model", "solvers_demo"),
            )
            for rate in (1e-3, 1e-2)
        ],
    ),
    "memory": Table(
        ("network", "`max_batch_size`", "gradient checkpointing"),
        [Column(f"{num} points", "{GiB:.3f}", {"points": num}) for num in (2, 3, 5, 17, 33)],
        [
            Line(
                (title, str(size or "none"), "yes" if checkpointing else "no"),
                {"file": file, "max_batch_size": size, "checkpointing": checkpointing},
            )
            for title, file, sizes in (
                ("shipped, 32 x 32 latents", "memory", (0, 4, 1)),
                ("Stable Diffusion 1.5, 64 x 64 latents", "memory_sd15", (1,)),
            )
            for checkpointing in (False, True)
            for size in sizes
        ],
    ),
    "precision": Table(
        ("network", "dtype", "points"),
        [
            *_values("resolved:.2g", "error of the chords=chords:.2g"),
            *_values("error of the energy=energy:.2g", "angle=across:.2g"),
            Column("solved", "{solved:.1g}", {"file": "precision_solved"}),
        ],
        [
            Line(
                (title, dtype, str(num)),
                {"file": file, "model": model, "network": dtype, "points": num},
            )
            for model, title, file, dtypes, nums in (
                (*("shipped",) * 2, "precision", ("float32", "float16", "bfloat16"), POINTS),
                ("sd15", "Stable Diffusion 1.5", "precision_sd15", ("float32", "bfloat16"), (5, 9)),
            )
            for dtype in dtypes
            for num in nums
        ],
    ),
    "scale, points": Table(
        ("points",),
        _values("seconds:.2f", "seconds per point:.4f"),
        list(_lines("points", (5, 9, 17, 33, 65), file="scale")),
    ),
    "scale, size": Table(
        ("side of the latents",),
        _values("seconds:.2f", "microseconds per value:.1f"),
        list(_lines("side", (8, 16, 32, 64), file="scale")),
    ),
    "scale, pairs": Table(
        ("pairs",),
        [
            Column(f"{score}: {key}", f"{{{key}:.{digits}f}}", {"score": score})
            for score in ("exact score of a circle", "shipped model")
            for key, digits in (("one by one", 3), ("together", 3), ("ratio", 2))
        ],
        list(_lines("pairs", (1, 4, 16), file="scale")),
    ),
    "growth, points": Table(
        ("points",),
        _values(
            *("evaluations=evals", "status", "length, share of the true one=length:.4f"),
            *("evaluations without both=plain evals", "its status=plain status"),
            *("MiB:.2f", "KiB per point=KiB each:.1f"),
        ),
        list(_lines("points", (9, 17, 65, 129, 257, 513), file="growth")),
    ),
    "growth, pairs": Table(
        ("pairs",),
        _values(
            *("fewest evaluations=fewest evals", "most evaluations=most evals", "converged"),
            *("MiB:.1f", "KiB per pair=KiB each:.0f"),
        ),
        list(_lines("pairs", (1, 16, 64, 256), file="growth")),
    ),
    "batch": Table(
        ("image size",),
        _values(
            *("pairs", "seconds:.0f", "seconds in networks=network:.0f"),
            *("overhead:.1%", "overhead in CPU time=CPU overhead:.1%"),
        ),
        [
            Line((size,), {"file": file, "row": "overhead"})
            for size, file in (("64 px", "batch"), ("128 px", "batch_128"))
        ],
    ),
    "batch, estimate": Table(
        ("per pair",),
        [
            Column("forward passes", "{forward:.0f}", {"row": "passes"}),
            Column("reverse passes", "{reverse:.0f}", {"row": "passes"}),
            Column("reverse over forward", "{reverse over forward:.2f}", {"row": "passes"}),
            *(
                Column(title, text, {"row": "estimate"})
                for title, text in (
                    ("assumed seconds per pass", "{assumed seconds per pass:.4f}"),
                    ("seconds per pair", "{seconds per pair:.1f}"),
                    ("GPU hours for 10,000 pairs", "{GPU hours:.0f}"),
                    ("hours on 8 GPUs", "{hours on 8 GPUs:.1f}"),
                    ("dollars", "{price}"),
                )
            ),
        ],
        [Line(("estimate",), {"file": "batch"})],
    ),
    "geometry": Table(
        ("quantity",),
        _values("known:.5g", "computed:.5g", "error:.1e"),
        list(
            _lines(
                "quantity",
                (
                    "exp by half a turn: angle to the antipode",
                    "exp by half a turn: largest over smallest step",
                    "log at distance 1.5: norm",
                    "exp of log: distance to the end point",
                    "transport around a loop: angle of rotation",
                    "transport along a meridian: angle to it",
                    "weighted mean of three points: angle to the true mean",
                    *(f"curvature of a {k}-sphere at noise 0.1" for k in (1, 2, 5)),
                    "dimension of k-spheres by spectrum: wrong of 100",
                    "dimension of k-spheres by scores: wrong of 100",
                    *(
                        f"dimension of {name} by {method}"
                        for name in ("a point of R^6", "a Gaussian in R^6")
                        for method in ("spectrum", "scores", "flipd", "loss")
                    ),
                    "extrapolation by 90 degrees: distance",
                ),
                file="geometry",
            )
        ),
    ),
    "geometry, probes": Table(
        ("method", "noise", "distance to the sphere"),
        [
            Column("known", "{known:.2f}"),
            Column("mean ± spread of an estimate", "{mean:.2f} ± {spread:.2f}"),
            Column("stated standard error", "{std error:.2f}"),
        ],
        [
            Line(
                (method, str(noise), str(distance)),
                {"file": "geometry", "estimate": method, "noise": noise, "distance": distance},
            )
            for method in ("flipd", "loss")
            for noise in (0.1, 0.05)
            for distance in (0.0, 0.1, 0.2)
        ],
    ),
    "geometry, images": Table(
        ("image",),
        _values("known", "dimension", "gap:.2f"),
        list(
            _lines(
                "image",
                (
                    *(f"a {k}, shipped model" for k in "sphere cube cone torus cylinder".split()),
                    *(
                        f"digit {digit} at {angle} degrees, exact score"
                        for digit in range(3)
                        for angle in (0, 120, 240)
                    ),
                ),
                file="geometry",
            )
        ),
    ),
    "retiming": Table(
        ("path", "re-timed by", "measured by"),
        [
            Column("PDV", "{PDV:.3f} / {worst PDV:.3f}"),
            Column("PPL", "{PPL:.3f} / {worst PPL:.3f}"),
            *_values("largest step:.2f", "rounds:.1f"),
        ],
        [
            Line(
                (METHODS[path], by, measure),
                {"file": "retiming", "path": path, "re-timed by": by, "measured by": measure},
            )
            for path in ("tangent_normal", "slerp")
            for by in ("rmse", "ssim")
            for measure in ("rmse", "ssim")
        ],
    ),
    "adaptation, loss": Table(
        ("variant",),
        _values("loss:.4f", "loss below 600:.4f", "seconds per pair=seconds:.0f"),
        list(_lines("variant", VARIANTS, file="adaptation", guidance=None)),
    ),
    "adaptation, error": Table(
        ("guidance", "variant"),
        [
            Column(
                f"strength {strength:g}, {name}",
                "{error:.5f} / {worst:.5f}",
                {"strength": strength, "iterations": iterations},
            )
            for strength in (0.6, 1.0)
            for name, iterations in (("no iterations", 0), ("the default", None))
        ],
        [
            Line(
                (f"{guidance:g}", name),
                {"file": "adaptation", "variant": name, "guidance": guidance, "target": "decoded"},
            )
            for guidance in (1.0, 3.0)
            for name in VARIANTS
        ],
    ),
    "shipped model": Table(
        ("held-out scenes",),
        _values("scenes", "PSNR:.2f", "least PSNR:.2f"),
        [Line(("encoded and decoded",), {"file": "demo_model", "row": "autoencoder"})],
    ),
    "shipped model, inversion": Table(
        ("held-out scenes",),
        _values("scenes", "PSNR:.2f", "loss:.2f", "greatest loss:.2f"),
        [Line(("inverted and sampled back",), {"file": "demo_model", "row": "inversion"})],
    ),
    "shipped model, samples": Table(
        ("guidance",),
        _values("samples", "kind right", "hue right", "both right", "median PSNR:.1f"),
        list(_lines("guidance", (1.5, 2.0, 3.0), file="demo_model", row="samples")),
    ),
    "main job": Table(
        ("run",),
        _values(
            *("seconds:.1f", "seconds in the pipeline:.1f", "peak GiB:.2f"),
            *("evaluations=evals", "status"),
        ),
        list(_lines("run", (1, 2, 3), file="main_job")),
    ),
    "threads": Table(
        ("busy processes", "threads", "waiting"),
        _values(
            *("seconds:.2f", "processor seconds:.2f", "over one thread:.2f"),
            "processor over one thread:.2f",
        ),
        [
            Line(
                (str(busy), str(threads), waiting),
                {"file": "threads", "busy processes": busy, "threads": threads, "waiting": waiting},
            )
            for busy in (0, 1)
            for threads, waiting in ((1, "spin"), (2, "spin"), (2, "spin briefly"), (2, "sleep"))
        ],
    ),
    "main job, passes": Table(
        ("pair",),
        _values(
            *("inversion:.0f", "gradient", "forward:.0f", "sampling:.0f", "total:.0f"),
            *("slerp:.0f", "evaluations=evals", "energy:.3%", "frames:.4f"),
            *("largest step=step:.3f", "of slerp=slerp step:.3f"),
        ),
        list(_lines("pair", PASSES_PAIRS, file="main_job_passes", setting="noise")),
    ),
    "main job, earlier": Table(
        ("pair",),
        _values(
            *("passes:.0f", "earlier passes:.0f", "energy, curve=curve:+.2%"),
            *("energy, lines=lines:+.2%", "frames:.4f", "largest step=step:.3f"),
            "earlier largest step=earlier step:.3f",
        ),
        list(_lines("pair", [*PASSES_PAIRS, "mean"], file="earlier")),
    ),
    "main job, passes at a smaller tolerance": Table(
        ("pair",),
        _values(
            *("gradient", "forward:.0f", "total:.0f", "evaluations=evals", "energy:.3%"),
            *("frames:.4f", "largest step=step:.3f"),
        ),
        list(_lines("pair", PASSES_PAIRS, file="main_job_passes_tenth", setting="noise")),
    ),
    "main job, settings": Table(
        ("setting",),
        _values(
            *("inversion:.0f", "gradient", "forward:.0f", "sampling:.0f", "total:.0f"),
            *("slerp:.0f", "evaluations=evals", "energy:.3%", "frames:.4f"),
            *("largest step=step:.3f", "of slerp=slerp step:.3f"),
        ),
        list(_lines("setting", ("clean", "guidance 3"), file="main_job_settings", pair="shipped")),
    ),
    "contact sheets": Table(
        ("largest step",),
        [
            Column(name, "{largest step:.3f}", {"method": name})
            for name in ("tangent-normal", "score Jacobian", "Stein", "slerp", "lerp")
        ],
        list(_lines("pair", {1: "pair 1", 2: "pair 2", 3: "pair 3"}, file="contact_sheet")),
    ),
    "stages": Table(
        ("what",),
        _values("stages", "whole calls=calls", "ratio:.3f"),
        list(_lines("what", COMPARED, file="stages")),
    ),
    "inversion": Table(
        ("problem", "steps", "strength"),
        [
            *(
                Column(
                    f"{title}: passes, errors",
                    "{passes:.0f}, {median:.0e} / {greatest:.0e}",
                    {"rule": rule},
                )
                for rule, title in INVERSION_RULES.items()
            ),
            Column("five: worse", "{worse}", {"rule": "five"}),
            Column("default: worse, silent", "{worse}, {silent}", {"rule": "default"}),
        ],
        [
            Line(
                (name, str(steps), f"{strength:g}"),
                {"file": "inversion", "problem": problem, "steps": steps, "strength": strength},
            )
            for problem, name in INVERSION_PROBLEMS.items()
            for steps, strength in (
                ((50, 1.0), (25, 1.0), (10, 1.0), (5, 1.0))
                if problem.startswith("mixture")
                else ((50, 0.6), (25, 0.6), (10, 0.6), (50, 1.0), (5, 1.0))
            )
        ],
    ),
    "sampling": Table(
        ("problem", "method", "spacing"),
        [
            Column(
                f"{num} levels",
                "{invert:.0f} + {sample:.0f}, {trip:.0e} / {greatest trip:.0e}, "
                "{from 200:.4f}, {from exact:.4f}",
                {"levels": num},
            )
            for num in (10, 15, 30)
        ],
        [
            Line(
                (label, name, spacing),
                {"file": file, "problem": problem, "method": method, "spacing": spacing},
            )
            for problem, (label, file) in SAMPLING_PROBLEMS.items()
            for method, name in SAMPLING_METHODS.items()
            for spacing in ("even", *(("tau",) if method == "ddim" else ()), "cube")
        ],
    ),
    "references": Table(
        ("case",),
        [
            Column(name, "{frames:.1e}", {"family": name})
            for name in ("sd", "xl", "sd3", "flux", "pixels", "shipped")
        ],
        list(_lines("case", REFERENCE_CASES, file="references")),
    ),
    "imports": Table(
        ("what",),
        _values("CPU seconds=seconds:.2f", "over import torch=over torch:.3f"),
        list(_lines("what", IMPORTS, file="imports")),
    ),
}


FRONT_MODELS = (
    *("Stable Diffusion 1.5", "Stable Diffusion XL", "Stable Diffusion 3.5 medium"),
    *("Sana 1.6B", "PixArt-Sigma", "Z-Image", "Lumina 2", "AuraFlow", "Flux.2 klein 4B"),
    *("Chroma", "Flux.1 dev", "Qwen-Image"),
)
FRONT_TABLES = {
    "models": Table(
        ("model",),
        [
            Column(f"{title}, {pixels} px", text, {"pixels": pixels})
            for title, text in (("memory, GB", "{memory GB:.0f}"), ("seconds", "{seconds:.0f}"))
            for pixels in (512, 1024)
        ],
        list(_lines("model", FRONT_MODELS, file="model_costs", kind="estimate")),
    ),
}


def rewritten(text: str, tables: Mapping[str, Table | GpuReport] = TABLES) -> str:
    """The text of a README after its tables have been generated again.

    Raises:
        ValueError: If a table is missing, or has a name that is not defined here.
    """
    named = [name for _, name, _ in BLOCK.findall(text)]
    if sorted(named) != sorted(tables):
        wrong = ", ".join(sorted(set(named) ^ set(tables))) or "one table is there twice"
        raise ValueError(f"README and tables.py do not name the same tables: {wrong}.")
    return BLOCK.sub(lambda m: m[1] + tables[m[2]].render() + m[3], text)


def main(argv: list[str] | None = None) -> int:
    """Rewrite or check both READMEs; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit with 1 if a table differs"
    )
    args = parser.parse_args(argv)
    status = 0
    for path, tables in ((README, TABLES), (FRONT, FRONT_TABLES)):
        old = path.read_text()
        new = rewritten(old, tables)
        if args.check and new != old:
            print(f"{path}: tables differ from the results; run python benchmarks/tables.py")
            status = 1
        if not args.check:
            path.write_text(new)
    return status


if __name__ == "__main__":
    sys.exit(main())
