"""Morphs of rendered scenes, against the true geodesic of the images that the renderer can make.

    python benchmarks/scenes.py [--pairs 1 2 ...] [--methods slerp tangent_normal ...] [--lpips vgg]
        [--beyond]

The renders of one kind of solid are a smooth manifold with five coordinates. Its geodesic under the
pixels' flat metric is solved for in those coordinates; every method of the shipped model draws 17
frames between the same two renders. A line per pair and method, and means over pairs:

    truth     root mean square error to the true geodesic at equal fractions, values in [0, 1]
    jump      largest root mean square step between neighbouring frames (the truth's own is printed)
    render    root mean square distance of a frame to the nearest render, the autoencoder's included
    length    length of the frames' path in pixels over the true one
    middle    largest error of the middle frame's factors, as shares of their ranges
    LPIPS     to the truth, where a network is named and its weights are at hand
    evals, s  evaluations of the energy, seconds

`--beyond` morphs the first 13 frames of each true geodesic instead and goes on for the other 4: by
standing still, straight on among the clean latents, and with `extrapolate`, which may end earlier.
"""

from __future__ import annotations

import argparse
import math
import time

import torch
from machine import describe
from torch import Tensor

from riemannian_diffusion import PullbackMetric, demo, geodesic, length
from riemannian_diffusion.demo.renderer import FACTOR_RANGES, FACTORS
from riemannian_diffusion.evaluation import distances, largest_step, lpips_distance
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline

NUM_FRAMES, NUM_KNOWN = 17, 13
# A kind and two rows of factors: azimuth, hue, size, x, y. One factor moves, then several.
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
METHODS = {
    "lerp": {"metric": "lerp"},
    "slerp": {"metric": "slerp"},
    "nao": {"metric": "nao"},
    "noise_diffusion": {"metric": "noise_diffusion"},
    "density": {"metric": "density", "negative_prompt": "a blend of two images"},
    "stein": {"metric": "stein"},
    "score_jacobian": {"metric": "score_jacobian"},
    "tangent_normal": {"metric": "tangent_normal"},
    "clean": {"metric": "tangent_normal", "space": "clean", "strength": 0.2},
    "noise, then clean": {},  # the path of "tangent_normal" is where "clean" starts
}


class RenderMetric(PullbackMetric):
    """The pixels' flat metric in a kind's coordinates, `(K, 5)`."""

    def __init__(self, kind: str, resolution: int):
        self.kind, self.resolution = kind, resolution

    def embed(self, x: Tensor) -> Tensor:
        """The renders, as vectors whose squared norm is the mean square."""
        images = demo.render(self.kind, x, resolution=self.resolution).flatten(1)
        return images / images.shape[1] ** 0.5


def true_geodesic(kind: str, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Factors `(17, 5)` and renders `(17, 3, 64, 64)` at equal fractions of the true geodesic."""
    found = geodesic(
        RenderMetric(kind, 32), first, last, num_points=NUM_FRAMES, init="lerp", max_evals=60
    )
    factors = found(torch.linspace(0, 1, NUM_FRAMES))
    with torch.no_grad():
        return factors, demo.render(kind, factors)


def morph(pipe, images: Tensor, prompts: list[str], name: str) -> list:
    """The outputs of a method's calls of the pipeline; the last has the frames."""

    def run(output_type: str = "pt", **options):
        generator = torch.Generator().manual_seed(0)
        options |= {"num_frames": NUM_FRAMES, "output_type": output_type}
        return pipe(images, prompts, generator=generator, **options)

    if METHODS[name]:
        return [run(**METHODS[name])]
    first = run("latent", **METHODS["tangent_normal"])
    return [first, run(init=first.frames, **METHODS["clean"])]


def factor_error(found: Tensor, true: Tensor) -> Tensor:
    """Errors of factors `(5,)` as shares of their ranges, the short way around a circle."""
    spans = torch.tensor([high - low for low, high in FACTOR_RANGES.values()])
    error = (found - true).abs()
    for name, period in (("azimuth", 2 * math.pi), ("hue", 1.0)):
        column = error[..., FACTORS.index(name)]
        error[..., FACTORS.index(name)] = torch.minimum(column, period - column)
    return error / spans


def measure(frames: Tensor, kind: str, factors: Tensor, truth: Tensor) -> dict[str, float]:
    """The measures of one morph `(17, 3, 64, 64)` that need no network."""
    nearest = demo.nearest_render(frames[::2])
    middle = len(nearest.kinds) // 2
    error = factor_error(nearest.factors[middle], factors[NUM_FRAMES // 2]).max()
    return {
        "truth": float((frames - truth).square().mean().sqrt()),
        "jump": float(largest_step(frames)),
        "render": float(nearest.mse.mean().sqrt()),
        "length": float(length(frames) / length(truth)),
        "middle": float(error) if nearest.kinds[middle] == kind else math.nan,
    }


def go_beyond(pipe, truth: Tensor, prompts: list[str]) -> dict[str, dict[str, float]]:
    """What comes after the first 13 frames of a true geodesic, by every way to go on."""
    num = NUM_FRAMES - NUM_KNOWN
    keyframes = truth[[0, NUM_KNOWN - 1]]
    options = {"num_frames": NUM_KNOWN, "extrapolate": num / (NUM_KNOWN - 1)}
    latents = pipe(keyframes, prompts, output_type="latent", **options).frames
    step = latents[NUM_KNOWN - 1] - latents[NUM_KNOWN - 2]
    straight = torch.stack([latents[NUM_KNOWN - 1] + i * step for i in range(1, num + 1)])
    still = latents[NUM_KNOWN - 1].expand(num, -1, -1, -1)
    ways = {"still": still, "straight": straight, "extrapolate": latents[NUM_KNOWN:]}
    rows = {}
    for name, way in ways.items():
        row = {"frames": len(way), "truth": math.nan, "render": math.nan}
        if len(way):
            with torch.no_grad():
                scaled = way / pipe.vae.config.scaling_factor
                frames = (pipe.vae.decode(scaled).sample / 2 + 0.5).clamp(0, 1).cpu()
            true = truth[NUM_KNOWN : NUM_KNOWN + len(way)]
            row["truth"] = float((frames - true).square().mean().sqrt())
            row["render"] = float(demo.nearest_render(frames[-1:]).mse.sqrt())
        rows[name] = row
        print(f"{name:18s}" + "".join(f"{value:9.4g}" for value in row.values()), flush=True)
    return rows


def print_means(rows: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Print and return the means over pairs."""
    columns = next(iter(rows.values()))[0]
    means = {
        name: {c: torch.tensor([row[c] for row in of]).double().nanmean().item() for c in columns}
        for name, of in rows.items()
    }
    print(f"{'':18s}" + "".join(f"{name:>9s}" for name in columns))
    for name, row in means.items():
        print(f"{name:18s}" + "".join(f"{row[c]:9.4g}" for c in columns))
    return means


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Print the tables; returns the means of each method."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    numbers = range(1, len(PAIRS) + 1)
    parser.add_argument("--pairs", type=int, nargs="+", choices=numbers, default=list(numbers))
    parser.add_argument("--methods", choices=METHODS, nargs="+", default=list(METHODS))
    parser.add_argument("--model", help="default: the shipped one")
    parser.add_argument(
        "--lpips", choices=("alex", "vgg", "squeeze"), help="LPIPS with this network"
    )
    parser.add_argument("--beyond", action="store_true")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    print(describe(args.device))
    distance = lpips_distance(args.lpips, device=args.device) if args.lpips else None
    pipe = GeodesicInterpolationPipeline.from_pretrained(args.model or demo.model_path())
    pipe.to(args.device).set_progress_bar_config(disable=True)
    if args.beyond:
        rows = {}
        for number in args.pairs:
            kind, *ends = PAIRS[number - 1]
            factors, truth = true_geodesic(kind, *torch.tensor(ends))
            hues = factors[[0, NUM_KNOWN - 1], FACTORS.index("hue")]
            print(f"\npair {number}, {kind}")
            prompts = [demo.caption(kind, float(hue)) for hue in hues]
            for name, row in go_beyond(pipe, truth, prompts).items():
                rows.setdefault(name, []).append(row)
        print(f"\nmeans over pairs {args.pairs}")
        return print_means(rows)
    columns = ["truth", "jump", "render", "length", "middle", "evals", "s"]
    columns += ["LPIPS"] if distance else []
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in args.methods}
    for number in args.pairs:
        kind, *ends = PAIRS[number - 1]
        factors, truth = true_geodesic(kind, *torch.tensor(ends))
        moving = [name for name, a, b in zip(FACTORS, *ends, strict=True) if a != b]
        print(f"\npair {number}, {kind}: {', '.join(moving)}", end="; ")
        print(f"the truth's own jump {float(largest_step(truth)):.4f}")
        print(f"{'':18s}" + "".join(f"{name:>9s}" for name in columns))
        prompts = [demo.caption(kind, end[FACTORS.index("hue")]) for end in ends]
        for name in args.methods:
            start = time.perf_counter()
            outputs = morph(pipe, truth[[0, -1]], prompts, name)
            seconds = time.perf_counter() - start
            frames = outputs[-1].frames.cpu()
            row = measure(frames, kind, factors, truth)
            found = [g for output in outputs for g in output.geodesics if g is not None]
            row["evals"] = sum(g.num_evals for g in found)
            row["s"] = seconds
            if distance:
                row["LPIPS"] = float(distances(frames, truth, distance).mean())
            rows[name].append(row)
            print(f"{name:18s}" + "".join(f"{row[c]:9.4g}" for c in columns), flush=True)
    print(f"\nmeans over pairs {args.pairs} (middle: where the kind was right)")
    return print_means(rows)


if __name__ == "__main__":
    main()
