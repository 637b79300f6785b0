"""Morphs of rendered scenes, against the true geodesic of the images that the renderer can make.

    python benchmarks/scenes.py [--pairs 1 2 ...] [--methods slerp tangent_normal ...] [--lpips vgg]
        [--beyond]

The renders of one kind of solid are a smooth manifold with five coordinates. Its geodesic under the
flat metric of pixels is solved for in those coordinates; every method morphs between the same two
renders with the shipped model, 17 frames. There is one row per pair and method, then the means over
pairs:

    error     root mean square error to the true geodesic at equal fractions, values in [0, 1]
    jump      largest root mean square step between neighbouring frames
    render    root mean square distance of frames to the nearest render, which includes the error of
              the autoencoder
    length    length of the path of frames in pixels over the true length
    middle    largest error of the middle frame's factors, as a share of their ranges (None, and not
              in the mean, where the nearest render is of another kind)
    evals     evaluations of the energy
    seconds   time of the morph
    LPIPS     distance to the true geodesic, only with --lpips

`--beyond` morphs between the ends of the first 13 frames of each true geodesic instead and
continues for the other 4: by standing still, straight on in clean latents, and with `extrapolate`,
which may end earlier. "render" is then the distance of the last frame.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator

import frame
import torch
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


def morph(pipe, images: Tensor, prompts: list[str], name: str, seed: int) -> list:
    """The outputs of a method's calls of the pipeline; the last has the frames."""

    def run(output_type: str = "pt", **options):
        generator = torch.Generator().manual_seed(seed)
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


def measures_of(frames: Tensor, kind: str, factors: Tensor, truth: Tensor) -> dict[str, float]:
    """The measures of one morph `(17, 3, 64, 64)` that need no network."""
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
    """Measures of the frames after the first 13 of a true geodesic, by every method to go on."""
    num = NUM_FRAMES - NUM_KNOWN
    keyframes = truth[[0, NUM_KNOWN - 1]]
    options = {"num_frames": NUM_KNOWN, "extrapolate": num / (NUM_KNOWN - 1)}
    latents = pipe(keyframes, prompts, output_type="latent", **options).frames
    step = latents[NUM_KNOWN - 1] - latents[NUM_KNOWN - 2]
    straight = torch.stack([latents[NUM_KNOWN - 1] + i * step for i in range(1, num + 1)])
    still = latents[NUM_KNOWN - 1].expand(num, -1, -1, -1)
    methods = {"still": still, "straight": straight, "extrapolate": latents[NUM_KNOWN:]}
    rows = {}
    for name, after in methods.items():
        row = {"frames": len(after), "error": math.nan, "render": math.nan}
        if len(after):
            with torch.no_grad():
                scaled = after / pipe.vae.config.scaling_factor
                frames = (pipe.vae.decode(scaled).sample / 2 + 0.5).clamp(0, 1).cpu()
            true = truth[NUM_KNOWN : NUM_KNOWN + len(after)]
            row["error"] = float((frames - true).square().mean().sqrt())
            row["render"] = float(demo.nearest_render(frames[-1:]).mse.sqrt())
        rows[name] = row
    return rows


def means(rows: dict[str, list[dict[str, float]]]) -> Iterator[dict]:
    """Means of each method over the pairs."""
    for name, of in rows.items():
        columns = {c: torch.tensor([row[c] for row in of]).double().nanmean().item() for c in of[0]}
        yield {"pair": "mean", "kind": "", "method": name} | columns


def main(argv: list[str] | None = None) -> list[dict]:
    """Measure all methods; return the rows."""
    parser = frame.parser(__doc__)
    numbers = range(1, len(PAIRS) + 1)
    parser.add_argument("--pairs", type=int, nargs="+", choices=numbers, default=list(numbers))
    parser.add_argument("--methods", choices=METHODS, nargs="+", default=list(METHODS))
    parser.add_argument("--model", help="default: the shipped one")
    parser.add_argument(
        "--lpips", choices=("alex", "vgg", "squeeze"), help="LPIPS with this network"
    )
    parser.add_argument("--beyond", action="store_true")
    return frame.run(measure, parser, argv)


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """Measures of every pair and method, then their means."""
    distance = lpips_distance(args.lpips, device=args.device) if args.lpips else None
    pipe = GeodesicInterpolationPipeline.from_pretrained(args.model or demo.model_path())
    pipe.to(args.device)
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
        for name in args.methods:
            start = time.perf_counter()
            outputs = morph(pipe, truth[[0, -1]], prompts, name, args.seed)
            seconds = time.perf_counter() - start
            frames = outputs[-1].frames.cpu()
            row = measures_of(frames, kind, factors, truth)
            found = [g for output in outputs for g in output.geodesics if g is not None]
            row["evals"] = sum(g.num_evals for g in found)
            row["seconds"] = seconds
            if distance:
                row["LPIPS"] = float(distances(frames, truth, distance).mean())
            rows[name].append(row)
            yield place | {"method": name} | row
    yield from means(rows)


if __name__ == "__main__":
    main()
