"""The GIF of the README: a geodesic next to slerp, between the two images that ship.

    python examples/morph_gif.py --output examples/morph.gif

Both paths run between the same inverted images, and both have the same number of frames.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from riemannian_diffusion import demo
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline

COLUMNS = {"geodesic": "tangent_normal", "slerp": "slerp"}
TITLE = 28  # height of the titles, in pixels


def main(argv: list[str] | None = None) -> None:
    """Make the GIF."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("morph.gif"))
    parser.add_argument("--frames", type=int, default=25, help="frames of each path (default: 25)")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--max-evals", type=int, default=200)
    args = parser.parse_args(argv)
    pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
    pipe.set_progress_bar_config(disable=True)
    images = []
    for path in demo.endpoint_paths():
        with Image.open(path) as image:
            images.append(image.convert("RGB"))
    keys = pipe.invert(images, num_inference_steps=args.steps)
    frames = []
    for metric in COLUMNS.values():
        morph = pipe.solve(keys, metric, num_frames=args.frames, max_evals=args.max_evals)
        frames.append(pipe.render(pipe.sample(morph)).frames)
    write([titled(row) for row in zip(*frames, strict=True)], args.output)


def titled(row: tuple[Image.Image, ...], width: int = 240) -> Image.Image:
    """The images of a row side by side, each under the name of its path."""
    sheet = Image.new("RGB", (width * len(row), width + TITLE), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=18)
    for column, (name, image) in enumerate(zip(COLUMNS, row, strict=True)):
        large = image.resize((width, width), Image.Resampling.BICUBIC)
        sheet.paste(large, (column * width, TITLE))
        middle = ((column + 0.5) * width, TITLE / 2)
        pen.text(middle, name, fill="black", font=font, anchor="mm")
    return sheet


def write(frames: list[Image.Image], path: Path) -> None:
    """A GIF that plays the frames there and back again, with a pause at both ends.

    All frames share one palette, so that what does not move does not flicker.
    """
    wide = Image.new("RGB", (frames[0].width * len(frames), frames[0].height))
    for number, frame in enumerate(frames):
        wide.paste(frame, (number * frame.width, 0))
    palette = wide.quantize(192, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    there = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    there = there + there[-2:0:-1]
    pauses = [80] * len(there)  # milliseconds
    pauses[0] = pauses[len(frames) - 1] = 700
    there[0].save(path, save_all=True, append_images=there[1:], duration=pauses, loop=0)


if __name__ == "__main__":
    main()
