"""Repeat a paper's experiment with Stable Diffusion: its recipe, our default, and its baselines.

    python benchmarks/reproduce.py stein --data PAIRS --work WORK
    python benchmarks/reproduce.py score_jacobian --data PAIRS --work WORK --data-set animation

`stein` is arXiv 2505.11128 and `score_jacobian` is arXiv 2510.05509. PAIRS is a folder with images
`<name>_0.png` and `<name>_1.png`, as in MorphBench. The method "paper" is the paper's recipe, and
"default" is the pipeline with its defaults and the paper's number of frames. The table has one row
for each measure of the paper's protocol. If `--data-set` names the data, the published figure
stands next to ours. Below the table, the script lists the known differences from the paper.

Frames are written to `WORK/<paper>/<method>/<name>/`. The same command continues a run that was
interrupted, even in the middle of a solve. Measures whose networks have no weights on disk and
cannot download them are left out, and the script says so.
"""

from __future__ import annotations

import argparse
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import frame
import torch
from accelerate import PartialState
from methods import RECIPE
from morph_pairs import Pair, add_options, describe_morph, images_of, make_morphs, pairs_of

from riemannian_diffusion import Adam, ScoreJacobianMetric, SteinScoreMetric
from riemannian_diffusion.evaluation import (
    PROTOCOLS,
    Evaluation,
    Protocol,
    evaluate,
    find_sequences,
)
from riemannian_diffusion.pipelines import Keyframes, MorphPath
from riemannian_diffusion.pipelines.curves import CURVES, MetricFactory

SETTINGS = (  # frames depend on these options, so all frames in one folder must share them
    *("paper", "model", "size", "negative_prompt", "score_mode", "max_evals", "dtype", "seed"),
)
INVERSION = {  # plain DDIM
    "strength": 0.6,
    "num_inference_steps": 50,
    "max_levels": None,
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
        num_quadrature: Number of sub-chords of each segment in the energy.
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
            "The prompts are unknown. Without `--prompts`, this script uses none.",
            "Other versions of the method read the score as the difference of a prompt and a "
            "negative prompt. Give `--prompts`, `--negative-prompt` and `--score-mode difference` "
            "for that; the default is the score of the prompt alone.",
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
        pair.prompts,
        args.negative_prompt,
        max_batch_size=args.max_batch_size,
        generator=torch.Generator().manual_seed(args.seed),
        **options,
    )
    return noised(keys) if keys.space == "clean" else keys


def noised(keys: Keyframes) -> Keyframes:
    """Clean keyframes under their shared noise, as keyframes in noise space."""
    level = keys.levels(keys.levels.schedule.timesteps[0])
    points = level.alpha * keys.clean + level.sigma * keys.noise
    return replace(keys, points=points, space="noise", noise=None)


def morph(pipe, pair: Pair, method: str, args: argparse.Namespace) -> tuple[list, list, dict]:
    """The frames of one pair, the images as the model receives them, and the report."""
    recipe, images = RECIPES[args.paper], images_of(pair, args.size)

    # 1. The end points. They are kept, since a solve only continues between the very same points
    folder = args.output / "solves" / method / pair.name
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "keys.safetensors"
    if not kept.exists():
        ends_of(pipe, images, pair, method, args).save(kept)
    keys = Keyframes.load(kept)

    # 2. The path
    options: dict[str, Any] = {"checkpoint": folder / "solve.safetensors"}
    options["num_frames"] = recipe.num_frames
    options["generator"] = torch.Generator().manual_seed(args.seed)
    if args.max_evals:
        options["max_evals"] = args.max_evals
    if method == "default":
        path = pipe.solve(keys, **options)
    elif method == "paper":
        path = solve_as_published(pipe, keys, recipe, options | {"score_mode": args.score_mode})
    else:
        path = pipe.solve(keys, method, score_mode=args.score_mode, **options)

    # 3. The frames
    output = pipe.render(pipe.sample(path), max_batch_size=args.max_batch_size)
    shutil.rmtree(folder)
    report = describe_morph(output) | {"timestep": keys.levels.schedule.timesteps[0]}
    return output.frames, images, report


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

    # 1. Make the morphs that are still to be made
    make_morphs(args, PartialState(cpu=args.device == "cpu"), SETTINGS, morph)

    # 2. Measure the frames by the paper's protocols
    wanted, sides, notes = {pair.name for pair in pairs_of(args)}, set(), []
    protocols = list(recipe.protocols)
    for method in args.methods:
        folder = args.output / method
        files = find_sequences(folder) if folder.is_dir() else []
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
    add("--data", dest="pairs", type=Path, required=True, metavar="PAIRS", help="folder of pairs")
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
    add_options(parser)
    return parser


def main(argv: list[str] | None = None) -> list[dict]:
    """Run the experiment and return the rows."""
    return frame.run(measure, make_parser(), argv)


if __name__ == "__main__":
    main()
