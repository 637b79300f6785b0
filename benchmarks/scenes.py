"""Morphs of rendered scenes, compared with true geodesics of the renderer's images.

    python benchmarks/scenes.py [--pairs 1 2 ...] [--methods slerp tangent_normal ...] [--lpips vgg]
        [--beyond | --tolerances [RTOL ...] [--sets tuning] [--guidance 3]]

The renders of one kind of solid are a smooth manifold with five coordinates. Its geodesic under the
flat metric of pixels is solved for in those coordinates. Every method morphs between the same two
renders with the shipped model in 17 frames. There is one row per pair and method, and rows with the
means over pairs follow. The columns are:

    error     root mean square error to the true geodesic at equal fractions, values in [0, 1]
    jump      largest root mean square step between neighbouring frames
    render    root mean square distance of frames to the nearest render, which includes the error of
              the autoencoder
    length    length of the path of frames in pixels over the true length
    middle    largest error of the middle frame's factors, as a share of their ranges; it is None,
              and the mean leaves it out, if the nearest render shows another kind of solid
    evals     evaluations of the energy
    seconds   time of the morph, with the inversion of its keyframes
    LPIPS     LPIPS distance to the true geodesic, only with --lpips

With `--beyond`, every method morphs between the first and the 13th frame of each true geodesic and
continues for the other 4 frames. The methods stand still, go straight on in clean latents, or use
`extrapolate`, which may end earlier. "render" is then the distance of the last frame.

With `--tolerances`, the default metric in noise space is solved with several tolerances, on these
pairs ("reporting") and on pairs of random scenes of one kind ("tuning"), on which the default
tolerance was chosen. Slerp has no tolerance. "passes" counts passes of the network as in
`main_job.py`, with inversion and sampling. With `--guidance`, inversion, solve and sampling are
guided by captions.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import frame
import torch
from main_job import counted
from PIL import Image
from torch import Tensor

from riemannian_diffusion import PullbackMetric, demo, geodesic, length
from riemannian_diffusion.demo.renderer import FACTOR_RANGES, FACTORS
from riemannian_diffusion.evaluation import distances, largest_step, lpips_distance
from riemannian_diffusion.pipelines import (
    GeodesicInterpolationOutput,
    GeodesicInterpolationPipeline,
    Keyframes,
)

NUM_FRAMES, NUM_KNOWN = 17, 13
# A pair has a kind of solid and the factors of both scenes: azimuth, hue, size, x, y. One factor
# changes in the first five pairs, all factors change in the others.
PAIRS = (
    ("cube", (0.3, 0.60, 0.65, 0.0, 0.0), (1.3, 0.60, 0.65, 0.0, 0.0)),
    ("cone", (1.0, 0.05, 0.65, 0.0, 0.0), (1.0, 0.35, 0.65, 0.0, 0.0)),
    ("sphere", (2.0, 0.90, 0.52, 0.0, 0.0), (2.0, 0.90, 0.73, 0.0, 0.0)),
    ("cylinder", (0.7, 0.40, 0.60, -0.4, 0.0), (0.7, 0.40, 0.60, 0.4, 0.0)),
    ("torus", (0.5, 0.15, 0.65, 0.0, -0.4), (0.5, 0.15, 0.65, 0.0, 0.4)),
    ("torus", (0.3, 0.02, 0.68, -0.12, 0.0), (1.3, 0.14, 0.72, 0.12, -0.1)),
    ("cube", (0.2, 0.60, 0.60, -0.25, -0.2), (0.9, 0.70, 0.72, 0.2, 0.2)),
    ("cone", (4.0, 0.80, 0.55, 0.3, 0.2), (5.2, 0.95, 0.70, -0.3, -0.2)),
)
HELD_OUT_SEED = 2000  # the shipped model was trained on scenes drawn from seed 0
NEGATIVE_PROMPT = "a blend of two images"  # only the method "density" uses it
TUNING_SEED, NUM_TUNING = 777, 12
SETS = ("tuning", "reporting")  # of pairs, for a study of tolerances
TOLERANCES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
SPACES = {"noise": 0.6, "clean": 0.2}  # strength of the noise in each space
METHODS: dict[str, list[tuple[str, str]]] = {  # the space and the metric of each solve
    "lerp": [("noise", "lerp")],
    "slerp": [("noise", "slerp")],
    "split": [("noise", "split")],
    "nao": [("noise", "nao")],
    "noise_diffusion": [("noise", "noise_diffusion")],
    "density": [("noise", "density")],
    "stein": [("noise", "stein")],
    "likely": [("noise", "likely")],
    "score_jacobian": [("noise", "score_jacobian")],
    "tangent_normal": [("noise", "tangent_normal")],
    "clean": [("clean", "tangent_normal")],
    "noise, then clean": [("noise", "tangent_normal"), ("clean", "tangent_normal")],
}


class RenderMetric(PullbackMetric):
    """The flat metric of pixels, for points `(K, 5)` that are factors of one kind of solid."""

    def __init__(self, kind: str, resolution: int):
        self.kind, self.resolution = kind, resolution

    def embed(self, x: Tensor) -> Tensor:
        """Renders as vectors. Their squared norm is the mean square of the pixels."""
        images = demo.render(self.kind, x, resolution=self.resolution).flatten(1)
        return images / images.shape[1] ** 0.5


def write_pairs(folder: Path, num: int) -> Path:
    """Render pairs of scenes that the shipped model was not trained on; return their manifest.

    The kinds of solid take turns. Every third pair has two different kinds. The manifest has the
    captions as prompts.
    """
    factors = demo.random_factors(2 * num, torch.Generator().manual_seed(HELD_OUT_SEED))
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "pairs.csv"
    with manifest.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["name", "image_0", "image_1", "prompt_0", "prompt_1"])
        for i in range(num):
            kinds = [demo.KINDS[(i + (i % 3 == 2) * end) % len(demo.KINDS)] for end in (0, 1)]
            ends, name = factors[2 * i : 2 * i + 2], f"scene{i:02d}"
            with torch.no_grad():
                images = (demo.render(kinds, ends) * 255).round().byte().permute(0, 2, 3, 1)
            names = [f"{name}_{end}.png" for end in (0, 1)]
            for file_name, image in zip(names, images, strict=True):
                Image.fromarray(image.numpy()).save(folder / file_name)
            captions = [demo.caption(k, float(f[1])) for k, f in zip(kinds, ends, strict=True)]
            rows.writerow([name, *names, *captions])
    return manifest


def true_geodesic(kind: str, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Factors `(17, 5)` and renders `(17, 3, 64, 64)` at equal fractions of the true geodesic."""
    found = geodesic(
        RenderMetric(kind, 32), first, last, num_points=NUM_FRAMES, init="lerp", max_evals=60
    )
    factors = found(torch.linspace(0, 1, NUM_FRAMES))
    with torch.no_grad():
        return factors, demo.render(kind, factors)


def inverted(
    pipe, images: Tensor, prompts: list[str], seed: int
) -> dict[str, tuple[Keyframes, float]]:
    """The keyframes in each space, and the seconds that their inversion took."""
    found = {}
    for space, strength in SPACES.items():
        start = time.perf_counter()
        keys = pipe.invert(
            images,
            prompts,
            NEGATIVE_PROMPT,
            space=space,
            strength=strength,
            generator=torch.Generator().manual_seed(seed),
        )
        found[space] = keys, time.perf_counter() - start
    return found


def morph(
    pipe, keys: dict[str, tuple[Keyframes, float]], name: str, seed: int
) -> tuple[GeodesicInterpolationOutput, int, float]:
    """The output of a method, its evaluations of the energy, and the seconds that it took.

    Every solve after the first starts from the path that was found before.
    """
    init: Any = None
    num_evals, seconds = 0, 0.0
    for space, metric in METHODS[name]:
        start = time.perf_counter()
        generator = torch.Generator().manual_seed(seed)
        options = {"num_frames": NUM_FRAMES, "init": init, "generator": generator}
        path = pipe.sample(pipe.solve(keys[space][0], metric, **options))
        init = path.latents
        num_evals += sum(found.num_evals for found in path.geodesics if found is not None)
        seconds += keys[space][1] + time.perf_counter() - start
    start = time.perf_counter()
    output = pipe.render(path, output_type="pt")
    return output, num_evals, seconds + time.perf_counter() - start


def factor_error(found: Tensor, true: Tensor) -> Tensor:
    """Errors of factors `(5,)` as shares of their ranges.

    Errors of azimuth and hue are at most half a turn, because these factors are periodic.
    """
    spans = torch.tensor([high - low for low, high in FACTOR_RANGES.values()])
    error = (found - true).abs()
    for name, period in (("azimuth", 2 * math.pi), ("hue", 1.0)):
        column = error[..., FACTORS.index(name)]
        error[..., FACTORS.index(name)] = torch.minimum(column, period - column)
    return error / spans


def measures_of(frames: Tensor, kind: str, factors: Tensor, truth: Tensor) -> dict[str, float]:
    """Measures of one morph `(17, 3, 64, 64)`, except those that need a network."""
    nearest = demo.nearest_render(frames[::2])
    middle = len(nearest.kinds) // 2
    error = factor_error(nearest.factors[middle], factors[NUM_FRAMES // 2]).max()
    return {
        "error": float((frames - truth).square().mean().sqrt()),
        "jump": float(largest_step(frames)),
        "render": float(nearest.mse.mean().sqrt()),
        "length": float(length(frames) / length(truth)),
        "middle": float(error) if nearest.kinds[middle] == kind else math.nan,
    }


def go_beyond(pipe, truth: Tensor, prompts: list[str]) -> dict[str, dict[str, float]]:
    """Measures of the frames with which each method continues the first 13 of a true geodesic."""
    num = NUM_FRAMES - NUM_KNOWN
    keyframes = truth[[0, NUM_KNOWN - 1]]
    path = pipe.sample(pipe.solve(pipe.invert(keyframes, prompts), num_frames=NUM_KNOWN))
    latents = pipe.extend(path, num / (NUM_KNOWN - 1)).shown
    step = latents[NUM_KNOWN - 1] - latents[NUM_KNOWN - 2]
    straight = torch.stack([latents[NUM_KNOWN - 1] + i * step for i in range(1, num + 1)])
    still = latents[NUM_KNOWN - 1].expand(num, -1, -1, -1)
    methods = {"still": still, "straight": straight, "extrapolate": latents[NUM_KNOWN:]}
    rows = {}
    for name, after in methods.items():
        row = {"frames": len(after), "error": math.nan, "render": math.nan}
        if len(after):
            frames = pipe.decode(after).cpu()
            true = truth[NUM_KNOWN : NUM_KNOWN + len(after)]
            row["error"] = float((frames - true).square().mean().sqrt())
            row["render"] = float(demo.nearest_render(frames[-1:]).mse.sqrt())
        rows[name] = row
    return rows


def scenes_of(name: str) -> list[tuple[str, Tensor, Tensor]]:
    """The kinds of solid and the factors of both ends, of the reporting or tuning pairs."""
    if name == "reporting":
        return [(kind, torch.tensor(first), torch.tensor(last)) for kind, first, last in PAIRS]
    factors = demo.random_factors(2 * NUM_TUNING, torch.Generator().manual_seed(TUNING_SEED))
    kinds = [demo.KINDS[i % len(demo.KINDS)] for i in range(NUM_TUNING)]
    return list(zip(kinds, factors[::2], factors[1::2], strict=True))


def by_tolerance(
    pipe, scene: tuple[str, Tensor, Tensor], tolerances: list[float], guidance: float, seed: int
) -> Iterator[dict]:
    """The measures of one pair along slerp, and along geodesics with each tolerance."""
    kind, *ends = scene
    _, truth = true_geodesic(kind, *ends)
    prompts = [demo.caption(kind, float(end[FACTORS.index("hue")])) for end in ends]
    with counted(pipe.unet) as inversion:
        generator = torch.Generator().manual_seed(seed)
        keys = pipe.invert(truth[[0, -1]], prompts, guidance_scale=guidance, generator=generator)
    for rtol in (None, *tolerances):
        metric, options = ("slerp", {}) if rtol is None else ("tangent_normal", {"rtol": rtol})
        with counted(pipe.unet) as solve:
            path = pipe.sample(pipe.solve(keys, metric, num_frames=NUM_FRAMES, **options))
        frames = pipe.render(path, output_type="pt").frames.cpu()
        found = path.geodesics[0]
        yield {
            "tolerance": rtol,
            "error": float((frames - truth).square().mean().sqrt()),
            "jump": float(largest_step(frames)),
            "passes": inversion.cost + solve.cost,
            "evals": 0 if found is None else found.num_evals,
        }


def measure_tolerances(pipe, args: argparse.Namespace) -> Iterator[dict]:
    """The rows of all pairs and tolerances, and their means."""
    tolerances = args.tolerances or list(TOLERANCES)
    for name in args.sets:
        rows: dict[float | None, list[dict]] = {}
        for i, scene in enumerate(scenes_of(name)):
            for row in by_tolerance(pipe, scene, tolerances, args.guidance, args.seed):
                rows.setdefault(row["tolerance"], []).append(row)
                yield {"set": name, "pair": str(i + 1), "kind": scene[0]} | row
        for rtol, some in rows.items():
            mean = {
                key: sum(row[key] for row in some) / len(some)
                for key in ("error", "jump", "passes", "evals")
            }
            yield {"set": name, "pair": "mean", "kind": "", "tolerance": rtol} | mean


def means(rows: dict[str, list[dict[str, float]]]) -> Iterator[dict]:
    """Means of each method over the pairs."""
    for name, found in rows.items():
        columns = {
            column: torch.tensor([row[column] for row in found]).double().nanmean().item()
            for column in found[0]
        }
        yield {"pair": "mean", "kind": "", "method": name} | columns


def main(argv: list[str] | None = None) -> list[dict]:
    """Measure all methods; return the rows."""
    parser = frame.parser(__doc__)
    numbers = range(1, len(PAIRS) + 1)
    parser.add_argument("--pairs", type=int, nargs="+", choices=numbers, default=list(numbers))
    parser.add_argument("--methods", choices=METHODS, nargs="+", default=list(METHODS))
    parser.add_argument("--model", help="folder of a model (default: the shipped model)")
    parser.add_argument("--lpips", choices=("alex", "vgg", "squeeze"), help="network of LPIPS")
    study = parser.add_mutually_exclusive_group()
    study.add_argument("--beyond", action="store_true")
    study.add_argument(
        "--tolerances", type=float, nargs="*", metavar="RTOL", help="default: all five"
    )
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument(
        "--guidance", type=float, default=1.0, help="guidance of a study of tolerances"
    )
    return frame.run(measure, parser, argv)


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """Rows with measures of every pair and method, then rows with their means."""
    distance = lpips_distance(args.lpips, device=args.device) if args.lpips else None
    pipe = GeodesicInterpolationPipeline.from_pretrained(args.model or demo.model_path())
    pipe.to(args.device)
    if args.tolerances is not None:
        yield from measure_tolerances(pipe, args)
        return
    if args.beyond:
        rows = {}
        for number in args.pairs:
            kind, *ends = PAIRS[number - 1]
            factors, truth = true_geodesic(kind, *torch.tensor(ends))
            hues = factors[[0, NUM_KNOWN - 1], FACTORS.index("hue")]
            prompts = [demo.caption(kind, float(hue)) for hue in hues]
            for name, row in go_beyond(pipe, truth, prompts).items():
                rows.setdefault(name, []).append(row)
                yield {"pair": str(number), "kind": kind, "method": name} | row
        yield from means(rows)
        return
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in args.methods}
    for number in args.pairs:
        kind, *ends = PAIRS[number - 1]
        factors, truth = true_geodesic(kind, *torch.tensor(ends))
        place = {"pair": str(number), "kind": kind}
        yield place | {"method": "true geodesic", "jump": float(largest_step(truth))}
        prompts = [demo.caption(kind, end[FACTORS.index("hue")]) for end in ends]
        keys = inverted(pipe, truth[[0, -1]], prompts, args.seed)
        for name in args.methods:
            output, num_evals, seconds = morph(pipe, keys, name, args.seed)
            frames = output.frames.cpu()
            row = measures_of(frames, kind, factors, truth)
            row |= {"evals": num_evals, "seconds": seconds}
            if distance:
                row["LPIPS"] = float(distances(frames, truth, distance).mean())
            rows[name].append(row)
            yield place | {"method": name} | row
    yield from means(rows)


if __name__ == "__main__":
    main()
