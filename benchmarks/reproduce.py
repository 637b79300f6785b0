"""Repeat a paper's experiment with Stable Diffusion: its recipe, our default, and its baselines.

    python benchmarks/reproduce.py stein --data PAIRS --work WORK
    python benchmarks/reproduce.py score_jacobian --data PAIRS --work WORK --data-set animation

`stein` is arXiv 2505.11128 and `score_jacobian` is arXiv 2510.05509. PAIRS is a folder or a
manifest, as for `riemannian-diffusion batch`. The method "paper" is the paper's recipe, and
"default" is the pipeline with its defaults and the paper's number of frames. The table has one row
for each measure of the paper's protocol. If `--data-set` names the data, the published figure
stands next to ours. Below the table, the script lists the known differences from the paper.

Frames are written to `WORK/<paper>/<method>/<name>/`. The same command continues a run that was
interrupted, even in the middle of a solve, and several commands with one WORK share the pairs.
Measures whose networks have no weights on disk and cannot download them are left out, and the
script says so.
"""

from __future__ import annotations

import argparse
import shutil
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import frame
import torch
from methods import RECIPE

from riemannian_diffusion import Adam, ScoreJacobianMetric, SteinScoreMetric, demo
from riemannian_diffusion.cli.commands import describe_geodesic
from riemannian_diffusion.evaluation import (
    PROTOCOLS,
    Evaluation,
    Protocol,
    evaluate,
    find_sequences,
)
from riemannian_diffusion.media import open_image
from riemannian_diffusion.pairs.claims import Process
from riemannian_diffusion.pairs.folder import Made, PairFolder
from riemannian_diffusion.pairs.manifest import Pair, read_pairs
from riemannian_diffusion.pairs.running import run_pairs
from riemannian_diffusion.pairs.summary import write_summary
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline, Keyframes, MorphPath
from riemannian_diffusion.pipelines.curves import CURVES, MetricFactory
from riemannian_diffusion.runtime import check_device, default_dtype

SETTINGS = (  # frames depend on these options, so all frames in one folder must share them
    *("paper", "model", "size", "negative_prompt", "score_mode", "max_evals", "dtype"),
)
INVERSION = {  # plain DDIM
    "strength": 0.6,
    "num_inference_steps": 50,
    "spacing": "scheduler",
    "fixed_point_iterations": 0,
}
SHARED_ENDS = ("paper", "lerp", "slerp")  # methods between the end points of the recipe


@dataclass(frozen=True)
class Recipe:
    """A paper's experiment: what the paper states, and what this script chose.

    Attributes:
        source: The paper.
        metric: Function `ScoreModel -> Metric`.
        ends: Options of the stage `invert`. For `space="clean"`, both ends receive the same noise.
        num_frames: Number of frames, both ends included.
        baselines: Curves with which the paper compares its method.
        protocols: How the frames are measured.
        published: Published sums of LPIPS between adjacent frames, by data set.
        compared: Numbers of interior frames and end points that the paper's FID compares, or None.
        unknown: What the sources that could be read leave open, and what this script chose.
        solver: The optimiser.
        max_evals: Number of its steps.
        num_quadrature: Number of chords of each segment in the energy.
    """

    source: str
    metric: MetricFactory
    ends: dict[str, Any]
    num_frames: int
    baselines: tuple[str, ...]
    protocols: tuple[Protocol, ...]
    unknown: tuple[str, ...]
    published: dict[str, float] = field(default_factory=dict)
    compared: tuple[int, int] | None = None
    solver: Adam = RECIPE["solver"]
    max_evals: int = RECIPE["max_evals"]
    num_quadrature: int = RECIPE["num_quadrature"]


SAITO = PROTOCOLS["saito11"]
ENDS = (
    "Whether the first and last frames are the images or their reconstructions is unknown. Here "
    "they are reconstructions."
)
RECIPES = {
    "stein": Recipe(
        source="arXiv 2505.11128",
        metric=partial(SteinScoreMetric, lam=1000.0),
        ends={"space": "clean", "strength": 0.42, "num_inference_steps": 50},  # timestep 401
        num_frames=10,
        baselines=("lerp", "slerp", "noise_diffusion"),
        protocols=(
            replace(
                SAITO,
                name="azeglio10",
                source="Azeglio and Di Bernardo, arXiv 2505.11128: LPIPS, FID and KID. The sources "
                "do not define them; this protocol uses 10 frames, AlexNet, and the sets of "
                "saito11.",
                measures=("fid", "kid", "ppl", "consistency", "re", "largest_step"),
                num_frames=10,
            ),
        ),
        unknown=(
            "All published figures, the version of Stable Diffusion and the prompts: not "
            "available.",
            "The number of points, the start, the optimiser and its steps are unknown. This script "
            "follows a third-party version: 10 frames, slerp, 500 steps of Adam from 1e-3 to 1e-4.",
            "The paper's level is t = 400. This script uses the nearest of 50 steps, which is 401 "
            "for the schedule of Stable Diffusion.",
            "Whether the path runs between noisy latents or clean ones is unknown. Here both clean "
            "latents receive the same noise, the path runs between these noisy points, and DDIM "
            "denoises it.",
            ENDS,
            "The extrapolation is left out: its update is unknown.",
            "How LPIPS, FID and KID are computed is unknown; the protocol azeglio10 is this "
            "script's own.",
            "How the baselines find their end points is unknown. Here lerp and slerp join the same "
            "noisy points as the paper's method, and other curves join points that plain DDIM "
            "inverted to 0.6.",
        ),
    ),
    "score_jacobian": Recipe(
        source="arXiv 2510.05509",
        metric=ScoreJacobianMetric,
        ends=INVERSION,  # timestep 581
        num_frames=11,
        baselines=("lerp", "slerp", "nao", "noise_diffusion", "density"),
        protocols=(
            SAITO,
            replace(PROTOCOLS["saito11_vgg"], measures=("ppl", "pdv_std", "largest_step")),
        ),
        published={
            "animation": 0.38,
            "metamorphosis": 0.974,
            "celeba_hq": 0.632,
            "afhq": 0.761,
        },
        compared=(900, 200),
        unknown=(
            "The paper used Stable Diffusion 2.1 base, which has left the Hub. `--model` takes a "
            "copy of it.",
            "The prompts are unknown. This script uses those of the manifest, in a folder none.",
            "Other versions of the method read the score as the difference of a prompt and a "
            "negative prompt. Give prompts, `--negative-prompt` and `--score-mode difference` for "
            "that; the default is the score of the prompt alone.",
            "The LPIPS network is unknown. The table has AlexNet (saito11) and VGG (saito11_vgg).",
            ENDS,
            "The published FID and KID, and all published figures of baselines: not available.",
            "The density geodesic runs without textual inversion, which its authors use.",
        ),
    ),
}
CURVE_NAMES = tuple(name for name in CURVES if name != "split")
METHODS = ("paper", "default", *CURVE_NAMES)
DATA_SETS = tuple(RECIPES["score_jacobian"].published)


def ends_of(pipe, images: list, pair: Pair, method: str, args: argparse.Namespace) -> Keyframes:
    """The two images of a pair as points between which a method draws its path."""
    options = RECIPES[args.paper].ends if method in SHARED_ENDS else INVERSION
    if method == "default":
        options = {}
    keys = pipe.invert(
        images,
        list(pair.prompts),
        args.negative_prompt,
        max_batch_size=args.max_batch_size,
        generator=torch.Generator().manual_seed(pair.seed),
        **options,
    )
    return noised(keys) if keys.space == "clean" else keys


def noised(keys: Keyframes) -> Keyframes:
    """Clean keyframes under their shared noise, as keyframes in noise space."""
    level = keys.levels(keys.levels.schedule.timesteps[0])
    points = level.alpha * keys.clean + level.sigma * keys.noise
    return replace(keys, points=points, space="noise", noise=None)


class PaperWork:
    """Makes the morphs of an experiment with one pipeline.

    Args:
        args: The options.
    """

    def __init__(self, args: argparse.Namespace):
        path = demo.model_path() if args.model == "shipped" else args.model
        self.pipe = GeodesicInterpolationPipeline.from_pretrained(path)
        self.pipe.to(args.device, getattr(torch, args.dtype))
        self.args = args
        self.size = args.size or self.pipe.unet.config.sample_size * self.pipe.vae_scale_factor

    def prepare(self, pair: Pair) -> list:
        """The images of a pair, cropped and scaled to squares."""
        return [open_image(path, (self.size, self.size)) for path in pair.images]

    def make(self, pair: Pair, prepared: list, method: str) -> Made:
        """The morph of a pair by a method."""
        pipe, args, start = self.pipe, self.args, time.perf_counter()
        recipe = RECIPES[args.paper]

        # 1. The end points. They are kept, since a solve only continues between the same points
        folder = args.output / "solves" / method / pair.name
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / "keys.safetensors"
        if not kept.exists():
            ends_of(pipe, prepared, pair, method, args).save(kept)
        keys = Keyframes.load(kept)

        # 2. The path
        options: dict[str, Any] = {"checkpoint": folder / "solve.safetensors"}
        options["num_frames"] = pair.num_frames
        options["generator"] = torch.Generator().manual_seed(pair.seed)
        if args.max_evals:
            options["max_evals"] = args.max_evals
        if method == "default":
            path = pipe.solve(keys, **options)
        elif method == "paper":
            mode = {"score_mode": args.score_mode}
            path = solve_as_published(pipe, keys, recipe, options | mode)
        else:
            path = pipe.solve(keys, method, score_mode=args.score_mode, **options)

        # 3. The frames
        output = pipe.render(pipe.sample(path), max_batch_size=args.max_batch_size)
        shutil.rmtree(folder)
        found = output.geodesics[0]
        report = {
            "geodesic": None if found is None else describe_geodesic(found),
            "reconstruction_error": output.reconstruction_error,
            "seconds": round(time.perf_counter() - start, 3),
            "seconds_of_inversion": None,  # each method has its own
            "timestep": keys.levels.schedule.timesteps[0],
        }
        return Made(output.frames, prepared, report)

    def explain(self, error: Exception) -> str:
        """The error in words; raises if the device is lost."""
        check_device(self.args.device)
        return f"{type(error).__name__}: {error}"


def solve_as_published(pipe, keys: Keyframes, recipe: Recipe, options: dict) -> MorphPath:
    """The path of a recipe. Its points are the optimiser's own, which are not evenly spaced."""
    path = pipe.solve(
        keys,
        recipe.metric,
        init="slerp",
        solver=recipe.solver,
        num_quadrature=recipe.num_quadrature,
        rtol=0.0,
        **{"max_evals": recipe.max_evals} | options,
    )
    return replace(path, points=path.geodesics[0].nodes)


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """The rows of all methods and measures."""
    recipe = RECIPES[args.paper]
    args.output = args.work / args.paper
    args.methods = args.methods or ["paper", "default", *recipe.baselines]

    args.dtype = args.dtype or default_dtype(args.device)

    # 1. Make the morphs that are still to be made
    pairs = read_pairs(args.pairs, num_frames=recipe.num_frames, seed=args.seed)[: args.limit]
    with Process(args.output) as process:
        folder = PairFolder(args.output, args.methods, process)
        folder.begin({name: getattr(args, name) for name in SETTINGS}, pairs)
        if args.retry_failed:
            folder.forget_failures()
        run_pairs(pairs, folder, lambda: PaperWork(args), tell=print)
        print(write_summary(pairs, folder)[0])

    # 2. Measure the frames by the paper's protocols
    wanted, sides, notes = {pair.name for pair in pairs}, set(), []
    protocols = list(recipe.protocols)
    for method in args.methods:
        made = args.output / method
        files = find_sequences(made) if made.is_dir() else []
        files = [one for one in files if one.name in wanted]
        if not files:
            notes.append(f"{method}: all pairs failed, see {args.output / 'failed' / method}.")
            continue
        sides |= {one.resolution for one in files}
        for i, protocol in enumerate(protocols):
            fitting = at_any_size(protocol, files[0].resolution)
            with warnings.catch_warnings():  # they are among the notes
                warnings.simplefilter("ignore", UserWarning)
                found = evaluate(
                    (one.load() for one in files),
                    fitting,
                    device=args.device,
                    max_batch_size=args.max_batch_size,
                    seed=args.seed,
                    skip_missing=True,
                )
            notes += notes_on(found)
            measured = tuple(result.measure for result in found.results)
            protocols[i] = replace(protocol, measures=measured)  # does not ask for weights again
            yield from rows_of(found, method, args)

    # 3. Say what the figures do not say themselves
    print()
    for note in dict.fromkeys(notes):
        print(note)
    print(f"\nKnown differences from {recipe.source}:")
    for sentence in differences(recipe, args, len(wanted), sides):
        print(f"- {sentence}")


def at_any_size(protocol: Protocol, resolution: tuple[int, int]) -> Protocol:
    """The protocol, or for images of another size a variant whose name has that size."""
    if resolution == protocol.resolution:
        return protocol
    return replace(protocol, name=f"{protocol.name}, {resolution[0]} px", resolution=None)


def rows_of(found: Evaluation, method: str, args: argparse.Namespace) -> Iterator[dict]:
    """One row for each measure. Figures were published for the sum of LPIPS of the paper alone."""
    published = RECIPES[args.paper].published.get(args.data_set) if method == "paper" else None
    for result in found.results:
        known = published if result.measure == "ppl" else None
        low, high = result.interval or (None, None)
        yield {
            "method": method,
            "protocol": result.protocol,
            "measure": result.measure,
            "pairs": result.num_sequences,
            "ours": result.value,
            "low": low,
            "high": high,
            "published": known,
            "difference": None if known is None else result.value - known,
        }


def notes_on(found: Evaluation) -> list[str]:
    """Sentences on the measures that are missing, and on how far the others can be trusted."""
    notes = []
    for reason in dict.fromkeys(found.missing.values()):
        names = [name for name, given in found.missing.items() if given == reason]
        notes.append(f"Not measured: {', '.join(names)}. {reason}")
    return notes + list(found.warnings)


def differences(
    recipe: Recipe, args: argparse.Namespace, num_pairs: int, sizes: set[tuple[int, int]]
) -> Iterator[str]:
    """Sentences on how this run differs from the paper's experiment."""
    yield from recipe.unknown
    yield f"This run uses the model {args.model}."
    for height, width in sorted(sizes - {SAITO.resolution}):
        yield (
            f"The images have {width} x {height} pixels, the protocol has 512 x 512. Its figures "
            "cannot be compared."
        )
    if args.max_evals:
        yield f"Solves end after {args.max_evals} evaluations (`--max-evals`)."
    if recipe.compared is not None:
        frames, ends = (recipe.num_frames - 2) * num_pairs, 2 * num_pairs
        if (frames, ends) != recipe.compared:
            yield (
                f"FID compares {frames} frames with {ends} end points. The paper's compares "
                f"{recipe.compared[0]} with {recipe.compared[1]}, and FID depends on these numbers."
            )
    if args.data_set is None and recipe.published:
        figures = ", ".join(f"{name} {value}" for name, value in recipe.published.items())
        yield (
            "Published sums of LPIPS of the paper's method: " + figures + ". Give `--data-set` to "
            "compare with one of them."
        )


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = frame.parser(__doc__)
    add = parser.add_argument
    add("paper", choices=RECIPES)
    add("--data", dest="pairs", type=Path, required=True, metavar="PAIRS", help="the pairs")
    add("--work", type=Path, required=True, help="folder for frames, where runs are continued")
    add("--model", default="shipped", help='name or folder of a model (default: "shipped")')
    add("--methods", nargs="+", choices=METHODS, metavar="NAME", help="default: the paper's")
    add("--data-set", choices=DATA_SETS, help="the published data set that PAIRS holds")
    add("--max-evals", type=int, metavar="N", help="shorten solves (default: 500 steps of Adam)")
    add(
        "--score-mode",
        choices=("conditional", "difference"),
        default="conditional",
        help="score of the paper's metric (default: conditional)",
    )
    add("--limit", type=int, metavar="N", help="take only the first N pairs")
    add("--size", type=int, help="side of the square images (default: the model's own)")
    add("--negative-prompt", default="")
    add("--max-batch-size", type=int, default=8)
    add(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="default: float16 on CUDA, else float32",
    )
    add("--retry-failed", action="store_true", help="try the failed pairs again")
    return parser


def main(argv: list[str] | None = None) -> list[dict]:
    """Run the experiment and return the rows."""
    return frame.run(measure, make_parser(), argv)


if __name__ == "__main__":
    main()
