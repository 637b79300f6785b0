"""Keyframes from folders and clips, and the files that morphs become."""

from __future__ import annotations

import json

import numpy as np
import PIL.Image
import pytest
from models import flags

from riemannian_diffusion.cli import main
from riemannian_diffusion.files import write_atomically
from riemannian_diffusion.media import images_in, read_clip, write_frames

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
