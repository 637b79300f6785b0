"""Keyframes from folders and clips, and the files that morphs become."""

from __future__ import annotations

import json
import struct
import warnings
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL.Image
import PIL.TiffImagePlugin
import pytest
import torch
from models import flags

from riemannian_diffusion.cli import main
from riemannian_diffusion.files import write_atomically
from riemannian_diffusion.media import (
    converted,
    images_in,
    is_clip,
    left_out,
    open_image,
    read_clip,
    write_frames,
)
from riemannian_diffusion.media.images import pillow
from riemannian_diffusion.pipelines.inputs import to_pixels

FLAGS = flags(num_inference_steps=8, strength=0.5, metric="slerp", device="cpu")


def _shades(num, size=(32, 32)):
    """Grey images, each darker than the next by 20 steps."""
    return [PIL.Image.new("RGB", size, (20 * i + 10,) * 3) for i in range(num)]


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.mp4"
    write_frames(_shades(9), path, 5.0)
    return path


@pytest.fixture
def morph(tiny_pipe, tmp_path):
    tiny_pipe.save_pretrained(tmp_path / "model")

    def morph(source, output, *more):
        command = ["interpolate", str(source), "-o", str(tmp_path / output), *FLAGS, *more]
        assert main([*command, "--model", str(tmp_path / "model")]) == 0
        return json.loads((tmp_path / output).with_suffix(".json").read_text())

    return morph


def _level(image):
    return float(np.asarray(image).mean())


def test_frames_of_a_clip_are_read_as_written(clip):
    found = read_clip(clip, [0, 3, -1, 3])
    assert found.places == [0, 3, 8, 3] and found.fps == 5.0
    assert [_level(f) for f in found.frames] == pytest.approx([10, 70, 170, 70], abs=3)
    assert found.frames[0].size == (32, 32)
    assert read_clip(clip, [1], (16, 8)).frames[0].size == (16, 8)


def test_bad_clips(clip, tmp_path):
    with pytest.raises(ValueError, match="has 9 frames, none with the number 9"):
        read_clip(clip, [0, 9])
    with pytest.raises(ValueError, match="none with the number -10"):
        read_clip(clip, [-10])
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_clip(tmp_path / "no.mp4", [0])
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(clip.read_bytes()[:200])
    with pytest.raises(OSError, match="cannot be read as a video"):
        read_clip(broken, [0])


def test_the_middle_of_a_clip_is_filled_at_its_pace(morph, clip, tmp_path):
    report = morph(clip, "filled.mp4", "--clip-frames", "1", "6", "--size", "16")
    assert report["num_frames"] == 6 and report["fps"] == 5.0
    assert report["arguments"]["images"] == [f"{clip}#1", f"{clip}#6"]
    assert len(read_clip(tmp_path / "filled.mp4").frames) == 6
    assert read_clip(tmp_path / "filled.mp4", [0]).fps == 5.0
    report = morph(clip, "other.mp4", "--frames", "4", "--fps", "8", "--size", "16")
    assert report["num_frames"] == 4 and report["fps"] == 8.0


def test_keyframes_from_a_folder_and_back_again(morph, tmp_path):
    folder = tmp_path / "keys"
    folder.mkdir()
    for name, image in zip(("key10", "key2", "key1"), _shades(3, (16, 16)), strict=True):
        image.save(folder / f"{name}.png")
    (folder / "notes.txt").write_text("none")
    assert [path.stem for path in images_in(folder)] == ["key1", "key2", "key10"]
    report = morph(folder, "morph.gif", "--frames", "3", "--ping-pong", "--fps", "10")
    assert [name.split("/")[-1] for name in report["arguments"]["images"]] == [
        "key1.png",
        "key2.png",
        "key10.png",
    ]
    assert (
        report["num_frames"] == 8
    )  # 5 frames forward and 3 back, without repeating the first and the last
    with PIL.Image.open(tmp_path / "morph.gif") as gif:
        assert gif.n_frames == 8 and gif.info["duration"] == 100
        shown = []
        for i in range(8):
            gif.seek(i)
            shown.append(np.asarray(gif.convert("RGB")).astype(int))
    assert all(np.abs(shown[8 - i] - shown[i]).max() <= 8 for i in (1, 2, 3))


def test_a_clip_needs_an_earlier_and_a_later_frame(clip, tmp_path, capsys):
    command = ["interpolate", str(clip), "-o", str(tmp_path / "x.gif"), "--clip-frames", "5", "5"]
    assert main(command) == 2
    assert "must name an earlier and a later frame" in capsys.readouterr().err


def test_an_animated_image_alone_is_a_clip_and_a_video_stands_alone(morph, clip, tmp_path, capsys):
    shades = _shades(4, (16, 16))
    shades[0].save(tmp_path / "a.gif", save_all=True, append_images=shades[1:], duration=50)
    report = morph(tmp_path / "a.gif", "out")
    assert report["num_frames"] == 4 and report["fps"] == pytest.approx(20)
    assert main(["interpolate", str(clip), str(tmp_path / "a.gif"), "-o", str(tmp_path / "b")]) == 2
    assert "clip.mp4 is a video: give it alone" in capsys.readouterr().err


def test_a_write_that_fails_leaves_nothing(tmp_path):
    def fail(path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "x.json", fail)
    (tmp_path / "y.json").write_text("whole")
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "y.json", fail)
    assert [p.name for p in tmp_path.iterdir()] == ["y.json"]
    assert (tmp_path / "y.json").read_text() == "whole"


# Pictures: one meaning, whether a file is opened by the command or passed from Python

WAVE = np.add.outer(np.arange(16), np.arange(16) * 15).astype(np.uint8)  # 0 to 240
COLOURS = np.dstack([WAVE, WAVE[::-1], WAVE.T])
OPACITY = np.repeat(np.array([0, 128, 255, 64], np.uint8), 4)[:, None].repeat(16, 1)
OVER_WHITE = COLOURS * (OPACITY[..., None] / 255) + 255 - OPACITY[..., None]
GREY_OVER_WHITE = WAVE * (OPACITY / 255) + 255 - OPACITY
FAINT = np.where(OPACITY[..., None] > 0, COLOURS, 77).astype(np.uint8)  # hidden colours differ


def _image(array, mode=None):
    image = PIL.Image.fromarray(array)
    return image if mode is None else image.convert(mode)


def _tags(**tags):
    numbers = {"white": 281, "photometric": 262, "orientation": 274}
    found = PIL.TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        found[numbers[name]] = value
    return found


def _icc(space, curves):
    """A colour profile with linear curves. `curves` has the XYZ of each primary, if any."""

    def number(value):
        return struct.pack(">i", round(value * 65536))

    def xyz(values):
        return b"XYZ " + bytes(4) + b"".join(map(number, values))

    white = (0.9642, 1.0, 0.8249)
    tags = {b"wtpt": xyz(white), b"cprt": b"text" + bytes(4) + b"none\0\0\0\0"}
    tags[b"desc"] = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(79)
    curve = b"curv" + bytes(4) + struct.pack(">IHH", 1, 256, 0)  # gamma 1
    for name, values in curves.items():
        tags[name.encode() + b"TRC"] = curve
        if values is not None:
            tags[name.encode() + b"XYZ"] = xyz(values)
    table, data, place = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", place + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    head = struct.pack(">I4sI4s4s4s", place + len(data), b"", 0x02400000, b"mntr", space, b"XYZ ")
    head = (head + bytes(12) + b"acsp" + bytes(28) + b"".join(map(number, white))).ljust(128, b"\0")
    return head + table + data


SWAPPED = _icc(  # the primaries of sRGB, red and blue swapped
    b"RGB ",
    {"r": (0.1431, 0.0606, 0.7141), "g": (0.3851, 0.7169, 0.0971), "b": (0.4360, 0.2225, 0.0139)},
)
LINEAR_GREY = _icc(b"GRAY", {"k": None})


def _encoded(linear):
    """Linear light in [0, 255] as sRGB."""
    x = linear / 255
    return 255 * np.where(
        x <= 0.0031308, 12.92 * x, 1.055 * np.maximum(x, 1e-9) ** (1 / 2.4) - 0.055
    )


def _lab_grey():
    lightness = WAVE / 255 * 100
    light = np.where(lightness > 8, ((lightness + 16) / 116) ** 3, lightness / 903.3)
    neutral = np.full_like(WAVE, 128)
    bands = [_image(band) for band in (WAVE, neutral, neutral)]
    return PIL.Image.merge("LAB", bands), _encoded(255 * light)


WIDE = WAVE.astype(np.uint16) * 257
PALETTE = _image(COLOURS).quantize(8)
KEYED = np.where((np.asarray(PALETTE) == 3)[..., None], 255, np.asarray(PALETTE.convert("RGB")))
TURNED = PIL.Image.Exif()
TURNED[274] = 6

# name: (image, file, options of saving, expected values, greatest difference, part of the message)
PICTURES = {
    "RGBA": (_image(np.dstack([FAINT, OPACITY])), "a.png", {}, OVER_WHITE, 1, None),
    "RGBA webp": (
        *(_image(np.dstack([FAINT, OPACITY])), "a.webp", {"lossless": True, "exact": True}),
        *(OVER_WHITE, 1, None),
    ),
    "RGBA tiff": (_image(np.dstack([FAINT, OPACITY])), "a.tif", {}, OVER_WHITE, 1, None),
    "LA": (_image(np.dstack([WAVE, OPACITY])), "a.png", {}, GREY_OVER_WHITE, 1, None),
    "palette": (PALETTE, "a.png", {"transparency": 3}, KEYED, 0, None),
    "palette of a GIF": (PALETTE, "a.gif", {"transparency": 3}, KEYED, 0, None),
    "key of a grey": (
        *(_image(WAVE), "a.png", {"transparency": 100}, np.where(WAVE == 100, 255, WAVE), 0, None),
    ),
    "key of 16 bits": (
        *(_image(WIDE), "a.png", {"transparency": 100 * 257}),
        *(np.where(WAVE == 100, 255, WAVE), 0, None),
    ),
    "1 bit": (_image(WAVE > 99), "a.png", {}, 255 * (WAVE > 99), 0, None),
    "16 bits": (_image(WIDE), "a.png", {}, WAVE, 0, None),
    "16 bits big-endian": (
        *(PIL.Image.frombytes("I;16B", (16, 16), WIDE.astype(">u2").tobytes()), "a.tif", {}),
        *(WAVE, 0, None),
    ),
    "16 bits, white is 0": (
        *(_image(WIDE), "a.tif", {"tiffinfo": _tags(photometric=0)}, 255 - WAVE, 0, None),
    ),
    "12 bits by a tag": (
        *(_image(WAVE.astype(np.uint16)), "a.tif", {"tiffinfo": _tags(white=4095)}),
        *(WAVE / 4095 * 255, 0.5, None),
    ),
    "12 bits": (_image(WIDE // 16), "a.png", {}, WAVE, 1, "up to 3855: 4095 is read as white"),
    "a tag of the brightest pixel": (
        *(_image(WIDE), "a.tif", {"tiffinfo": _tags(white=61680)}, WAVE, 0, None),
    ),
    "16 bits PGM": (_image(WIDE), "a.pgm", {}, WAVE, 0, None),
    "16 bits JPEG 2000": (_image(WIDE), "a.jp2", {}, WAVE, 0, None),
    "32 bits to 255": (_image(WAVE.astype(np.int32)), "a.tif", {}, WAVE, 0, None),
    "32 bits to 65535": (_image(WIDE.astype(np.int32)), "a.tif", {}, WAVE, 0, None),
    "floats to 1": (_image(WAVE.astype(np.float32) / 255), "a.tif", {}, WAVE, 0, None),
    "floats to 255": (_image(WAVE.astype(np.float32)), "a.tif", {}, WAVE, 0, "255 is read"),
    "floats of PFM": (_image(WAVE.astype(np.float32) / 255), "a.pfm", {}, WAVE, 0, None),
    "orientation": (
        *(_image(np.rot90(COLOURS).copy()), "a.png", {"exif": TURNED}, COLOURS, 0, None),
    ),
    "orientation of TIFF": (
        *(_image(np.rot90(COLOURS).copy()), "a.tif", {"tiffinfo": _tags(orientation=6)}),
        *(COLOURS, 0, None),
    ),
    "profile": (
        *(_image(COLOURS), "a.png", {"icc_profile": SWAPPED}),
        *(_encoded(COLOURS[..., ::-1]), 2, None),
    ),
    "profile and palette": (
        *(PALETTE, "a.png", {"icc_profile": SWAPPED}),
        *(_encoded(np.asarray(PALETTE.convert("RGB"))[..., ::-1]), 2, None),
    ),
    "profile and opacity": (
        *(_image(np.dstack([FAINT, OPACITY])), "a.png", {"icc_profile": SWAPPED}),
        _encoded(COLOURS[..., ::-1]) * (OPACITY[..., None] / 255) + 255 - OPACITY[..., None],
        *(2, None),
    ),
    "profile of greys": (
        *(_image(WAVE), "a.png", {"icc_profile": LINEAR_GREY}, _encoded(WAVE), 2, None),
    ),
    "profile that is damaged": (
        *(_image(COLOURS), "a.png", {"icc_profile": b"damaged" * 30}, COLOURS, 0, "profile that"),
    ),
    "profile of another kind": (
        *(_image(COLOURS), "a.png", {"icc_profile": LINEAR_GREY}, COLOURS, 0, "profile that"),
    ),
    "Lab": (_lab_grey()[0], "a.tif", {}, _lab_grey()[1], 2, None),
    "CMYK": (
        *(_image(COLOURS, "CMYK"), "a.tif", {"icc_profile": SWAPPED}, COLOURS, 1, "profile that"),
    ),
    "oblong pixels": (
        _image(COLOURS),
        "a.tif",
        {"dpi": (204, 98)},
        COLOURS,
        0,
        "0.48 times as wide",
    ),
    "several frames": (
        *(_image(COLOURS), "a.png", {"save_all": True, "append_images": [_image(WAVE, "RGB")]}),
        *(COLOURS, 0, "2 frames, of which the first alone"),
    ),
}


@pytest.mark.parametrize("case", PICTURES)
def test_pictures_are_read_as_they_are_seen(case, tmp_path):
    image, name, options, expected, within, message = PICTURES[case]
    image.save(tmp_path / name, **options)
    expected = expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, 2)
    told = []
    found = np.asarray(open_image(tmp_path / name, tell=told.append))
    assert np.abs(found - expected).max() <= within
    assert (message is None and not told) or (len(told) == 1 and message in told[0]), told
    with PIL.Image.open(tmp_path / name) as opened, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pixels = to_pixels(opened, 0)
    assert len(caught) == len(told) and all(name in str(one.message) for one in caught)
    assert np.array_equal((255 * pixels.permute(1, 2, 0)).round().numpy(), found)
    read = PIL.Image.fromarray(found)
    assert np.array_equal(np.asarray(converted(read, "RGB")), found)  # once more changes nothing


@pytest.mark.parametrize("case", [case for case in PICTURES if PICTURES[case][-1] is None])
def test_the_page_reads_pictures_as_the_command_does(case, tmp_path):
    inputs = pytest.importorskip("riemannian_diffusion.app.inputs")
    image, name, options, *_ = PICTURES[case]
    image.save(tmp_path / name, **options)
    (shown,) = inputs.fit_images([str(tmp_path / name)], (16, 16), print)
    assert np.array_equal(np.asarray(shown), np.asarray(open_image(tmp_path / name)))


@pytest.mark.parametrize("mode", ["La", "RGBa", "RGBA"])
def test_opacity_of_images_in_memory(mode):
    layers = [WAVE, OPACITY] if mode == "La" else [COLOURS, OPACITY]
    image = _image(np.dstack(layers), mode)
    expected = np.repeat(GREY_OVER_WHITE[..., None], 3, 2) if mode == "La" else OVER_WHITE
    assert np.abs(np.asarray(converted(image, "RGB")) - expected).max() <= 2
    black = np.asarray(converted(image, "RGB", background="black"))
    assert np.abs(black - (expected - 255 + OPACITY[..., None])).max() <= 2


UNIT = torch.from_numpy(COLOURS.astype(np.float32) / 255).permute(2, 0, 1)
GREY = torch.from_numpy(WAVE.astype(np.float32) / 255).expand(3, -1, -1)
ARRAYS = {
    "uint16": (COLOURS.astype(np.uint16) * 257, UNIT, False),
    "big-endian": ((COLOURS.astype(np.uint16) * 257).astype(">u2"), UNIT, False),
    "int64": (COLOURS.astype(np.int64), UNIT, False),
    "int16 to 255": (COLOURS.astype(np.int16), UNIT, True),
    "12 bits": (np.round(COLOURS / 255 * 4095).astype(np.uint16), UNIT, True),
    "float16": ((COLOURS / 255).astype(np.float16), UNIT, False),
    "floats to 255": (COLOURS.astype(np.float64), UNIT, True),
    "mask": (WAVE > 99, (GREY > 99.5 / 255).float(), False),
    "mask of integers": ((WAVE > 99).astype(np.int64), (GREY > 99.5 / 255).float(), False),
    "grey": (WAVE, GREY, False),
    "grey with an axis": (WAVE[..., None], GREY, False),
    "RGBA": (
        *(np.dstack([FAINT, OPACITY]), torch.from_numpy(OVER_WHITE / 255).permute(2, 0, 1), False),
    ),
    "LA": (
        np.dstack([WAVE, OPACITY]),
        *(torch.from_numpy(GREY_OVER_WHITE / 255).expand(3, -1, -1), False),
    ),
    "a tensor of 16 bits": (
        torch.from_numpy(COLOURS.astype(np.uint16) * 257).permute(2, 0, 1),
        *(UNIT, False),
    ),
    "rounding errors": (UNIT / UNIT.max() * 1.0000002, UNIT / UNIT.max(), False),
    "rounding errors below 0": (UNIT - 1e-6, UNIT, False),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_and_tensors(case):
    given, expected, is_told = ARRAYS[case]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = to_pixels(given, 0)
    assert (found - expected).abs().max() < 1e-3 and 0 <= found.min() and found.max() <= 1
    assert [("is read as white" in str(one.message)) for one in caught] == [True] * is_told
    grey = to_pixels(given, 0, 1) if isinstance(given, np.ndarray) else None
    if grey is not None:
        luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
        assert (grey - (luma * expected).sum(0)).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (UNIT / UNIT.max() * 1.0003, r"span \[0, 1.0003\]"),
        (UNIT - 0.001, r"span \[-0.001, "),
        (COLOURS.astype(np.int32) * 1000, r"from 0 to 65535, but they span \[0, 240000\]"),
    ],
)
def test_numbers_that_fit_no_range_are_told_in_full(numbers, message):
    with pytest.raises(ValueError, match=message):
        to_pixels(numbers, 0)


NOISE = np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg", "cut.tif", "cut.webp", "cut.avif"])
def test_files_that_are_cut_short_are_named(name, tmp_path):
    _image(NOISE).save(
        tmp_path / "whole", format={"jpg": "JPEG", "tif": "TIFF"}.get(name[4:], name[4:])
    )
    whole = (tmp_path / "whole").read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match=f"{name} cannot be read as an image: "):
        open_image(tmp_path / name)
    try:
        image = PIL.Image.open(tmp_path / name)
    except OSError:
        return  # Pillow refuses it before the library sees it
    with image, pytest.raises(OSError, match=f"^Image 1 .*{name}.* cannot be read: "):
        to_pixels(image, 1)


def test_empty_files_and_numbers_beyond_range_are_named(tmp_path):
    (tmp_path / "empty.png").touch()
    with pytest.raises(OSError, match="empty.png cannot be read as an image: it is empty"):
        open_image(tmp_path / "empty.png")
    _image(WAVE.astype(np.float32) / 100).save(tmp_path / "bright.tif")
    with pytest.raises(OSError, match=r"bright.tif cannot be read .* they span \[0, 2.4\]"):
        open_image(tmp_path / "bright.tif")
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(OSError, match="empty.mp4 cannot be read as a video: it is empty"):
        read_clip(tmp_path / "empty.mp4")


# Folders


def test_a_folder_gives_every_image_and_names_the_rest(tmp_path):
    names = ["2.png", "10.PNG", "3.jfif", "4.gif", "5.avif", "6.jp2", "7.heic", "8.bmp", "9.tga"]
    pytest.importorskip("pillow_heif")
    pillow()  # HEIF
    for name in names:
        _image(COLOURS).save(tmp_path / name, **({"format": "JPEG"} if "jfif" in name else {}))
    for name in (".DS_Store", "._2.png", "Thumbs.db", "notes.txt", "raw.cr2"):
        (tmp_path / name).touch()
    (tmp_path / "more").mkdir()
    found = [path.name for path in images_in(tmp_path)]
    assert found == ["2.png", *names[2:], "10.PNG"]
    for path in images_in(tmp_path):
        assert np.abs(np.asarray(open_image(path)).astype(int) - COLOURS).mean() < 9
    assert left_out(tmp_path).endswith("as no images: more, notes.txt, raw.cr2.")


@pytest.mark.parametrize("twin", ["a.jpg", "A.JPG", "a.jpeg"])
def test_twins_in_a_folder_are_refused(twin, tmp_path):
    for name in ("a.png", "b.png", twin):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"(?i)holds both .* and .*: move one kind away"):
        images_in(tmp_path)


def test_the_command_tells_what_it_leaves_out(morph, tmp_path, capsys):
    folder = tmp_path / "keys"
    folder.mkdir()
    for i in range(2):
        _image(np.dstack([FAINT, OPACITY])).save(folder / f"{i}.png")
    (folder / "notes.txt").touch()
    report = morph(folder, "fast.gif", "--frames", "3", "--fps", "100", "--background", "#000000")
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning: " in line]
    assert sum("notes.txt" in line for line in lines) == 1
    assert sum("plays 50 frames per second" in line for line in lines) == 1
    assert [line.split("warning: ")[1] for line in lines] == report["warnings"]


# Clips


def _write(
    path, frames, times=None, size=(32, 32), codec="libx264", pix="yuv420p", **stream_options
):
    """A video of arrays, with times in 1/100 s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=100 if times else 5, options={"qp": "3"})
        stream.width, stream.height, stream.pix_fmt = *size, pix
        for name, value in stream_options.items():
            setattr(stream.codec_context, name, value)
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if stream_options.get("colorspace") == 1:
                frame = frame.reformat(format=pix, dst_colorspace="itu709")
            if times:
                frame.pts, frame.time_base = times[i], Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


FLAT = [np.full((32, 32, 3), 20 * i + 10, np.uint8) for i in range(9)]


def test_frames_of_a_changing_rate_are_counted_as_shown(tmp_path):
    times = [0, 4, 8, 12, 16, 20, 70, 120, 170]
    _write(tmp_path / "v.mp4", FLAT, times)
    clip = read_clip(tmp_path / "v.mp4", [0, 5, 6, -1])
    assert [_level(f) for f in clip.frames] == pytest.approx([10, 110, 130, 170], abs=3)
    assert clip.fps == pytest.approx(8 / 1.7, rel=1e-3)


@pytest.mark.parametrize("suffix", ["gif", "apng", "webp", "avif", "tiff"])
def test_animated_images_are_clips(suffix, tmp_path):
    shades, path = _shades(5), tmp_path / f"a.{suffix}"
    delays = [40, 40, 500, 40, 40]
    shades[0].save(path, save_all=True, append_images=shades[1:], duration=delays)
    clip = read_clip(path, [0, 3, -1])
    assert is_clip(path) and [_level(f) for f in clip.frames] == pytest.approx([10, 70, 90], abs=3)
    assert clip.fps == pytest.approx(12 if suffix == "tiff" else 4 / 0.62)
    shades[0].save(path)
    assert not is_clip(path)


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("pix", ["yuv420p", "yuv420p10le", "yuv444p"])
def test_depths_of_video(codec, pix, tmp_path):
    _write(tmp_path / "v.mkv", FLAT, codec=codec, pix=pix)
    levels = [_level(f) for f in read_clip(tmp_path / "v.mkv").frames]
    assert levels == pytest.approx([20 * i + 10 for i in range(9)], abs=3)


def test_colours_of_video_follow_its_matrix(tmp_path):
    red = [np.full((32, 32, 3), (200, 40, 30), np.uint8)] * 2
    for name, options in {"a": {}, "b": {"colorspace": 1, "color_range": 1}}.items():
        _write(tmp_path / f"{name}.mp4", red, **options)
        found = np.asarray(read_clip(tmp_path / f"{name}.mp4", [0]).frames[0])[9, 9].astype(int)
        assert np.abs(found - (200, 40, 30)).max() <= 4
    write_frames([_image(red[0])] * 2, tmp_path / "c.mp4", 5.0)
    with av.open(str(tmp_path / "c.mp4")) as container:  # Y of BT.709, by its formula
        luma = next(container.decode(video=0)).to_ndarray()[9, 9]
    assert abs(luma - (16 + 219 * (0.2126 * 200 + 0.7152 * 40 + 0.0722 * 30) / 255)) <= 1


@pytest.mark.parametrize(
    ("shape", "size"),
    [(Fraction(4, 3), (43, 32)), (Fraction(1, 2), (32, 64)), (Fraction(1), (32, 32))],
)
def test_clips_have_square_pixels(shape, size, tmp_path):
    _write(tmp_path / "v.mp4", FLAT, sample_aspect_ratio=shape)
    assert read_clip(tmp_path / "v.mp4", [0]).frames[0].size == size


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((0, 1, -1, 0), lambda a: np.rot90(a, -1)),
        ((0, -1, 1, 0), np.rot90),
        ((-1, 0, 0, -1), lambda a: np.rot90(a, 2)),
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((0, 1, 1, 0), lambda a: a.transpose(1, 0, 2)),
    ],
)
def test_clips_stand_upright(matrix, turn, tmp_path):
    """The matrix is written into the header of the track, where cameras write it."""
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:16, :16], pixels[:16, 32:] = 250, 120
    _write(tmp_path / "v.mp4", [pixels] * 2, size=(48, 32))
    data = (tmp_path / "v.mp4").read_bytes()
    a, b, c, d = (value << 16 for value in matrix)
    plain = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    turned = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    place = data.index(plain, data.index(b"tkhd"))
    (tmp_path / "v.mp4").write_bytes(data[:place] + turned + data[place + 36 :])
    found = np.asarray(read_clip(tmp_path / "v.mp4", [0]).frames[0]).astype(int)
    assert found.shape == turn(pixels).shape and np.abs(found - turn(pixels)).mean() < 3


@pytest.mark.parametrize("suffix", ["mkv", "webm", "avi"])
def test_clips_that_are_cut_short_are_told(suffix, tmp_path):
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 255, (32, 32, 3), dtype=np.uint8) for _ in range(20)]
    codec = {"webm": "libvpx-vp9", "avi": "mpeg4"}.get(suffix, "libx264")
    _write(tmp_path / f"v.{suffix}", frames, codec=codec)
    whole, told = (tmp_path / f"v.{suffix}").read_bytes(), []
    assert read_clip(tmp_path / f"v.{suffix}", [-1], tell=told.append).places == [19] and not told
    (tmp_path / f"cut.{suffix}").write_bytes(whole[: len(whole) // 2])
    clip = read_clip(tmp_path / f"cut.{suffix}", [-1], tell=told.append)
    assert clip.places[0] < 15 and len(told) == 1 and "as if cut off" in told[0]


@pytest.mark.parametrize("name", ["12:30.mp4", "a#b?c=%41.mp4", "-x.mp4", "é 你.mp4"])
def test_odd_names_sizes_and_rates(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for fps in (0.01, 30000 / 1001, 1000.0):
        write_frames(_shades(3, (33, 21)), Path(name), fps)
        clip = read_clip(Path(name))
        assert clip.fps == pytest.approx(fps) and clip.frames[0].size == (34, 22)
        assert [_level(f) for f in clip.frames] == pytest.approx([10, 30, 50], abs=3)


def test_frames_of_a_video_that_fails_are_kept(tmp_path, monkeypatch):
    def fail(*args, **options):
        raise av.error.InvalidDataError(1, "no encoder")

    monkeypatch.setattr(av, "open", fail)
    with pytest.raises(OSError, match="m.mp4 cannot be written: .*no encoder.* are in the folder"):
        write_frames(_shades(3), tmp_path / "m.mp4", 12.0)
    (folder,) = tmp_path.iterdir()
    assert [_level(PIL.Image.open(path)) for path in images_in(folder)] == [10, 30, 50]


@pytest.mark.parametrize("fps", [0.5, 7, 12, 24, 30, 50, 60, 120])
def test_a_gif_plays_at_its_rate(fps, tmp_path):
    told = []
    write_frames(_shades(12), tmp_path / "m.gif", fps, tell=told.append)
    with PIL.Image.open(tmp_path / "m.gif") as gif:
        delays, ends = [], []
        for i in range(gif.n_frames):
            gif.seek(i)
            delays.append(gif.info["duration"])
            ends.append(_level(gif.convert("RGB")))
    assert min(delays) >= 20 and abs(sum(delays) - 12000 / fps) <= (5 if fps <= 50 else 20)
    assert max(delays) - min(delays) <= 10 and (ends[0], ends[-1]) == (10, 230)
    assert len(told) == (fps > 50) and (fps > 50 or len(delays) == 12)
