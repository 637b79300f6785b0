"""When memory runs out, every stage goes on in smaller batches, and no path is lost."""

from __future__ import annotations

import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from models import FAST, make, seeded, silent, waves

from riemannian_diffusion import batches
from riemannian_diffusion.batches import BatchSize, is_out_of_memory
from riemannian_diffusion.cli import main
from riemannian_diffusion.pipelines import MorphPath

MORPH = FAST | {"num_inference_steps": 4, "num_frames": 3, "max_evals": 1, "output_type": "pt"}
ERROR = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.fixture(scope="module")
def pipe():
    return silent(make("sd"))


@contextmanager
def watched(pipe, before):
    """Call `before(part, batch)` before every call of the network and the autoencoder."""
    undo = []

    def watch(owner, name, part):
        function = getattr(owner, name)

        def called(x, *args, **options):
            before(part, len(x))
            return function(x, *args, **options)

        owner.__dict__[name] = called
        undo.append(lambda: owner.__dict__.pop(name))

    watch(pipe.unet, "forward", "network")
    watch(pipe.vae, "encode", "encode")
    watch(pipe.vae, "decode", "decode")
    try:
        yield
    finally:
        for back in undo:
            back()


@contextmanager
def failing(pipe, part, fails):
    """Raise an error at the calls of one part for which `fails(number, batch)` is true."""
    counts = Counter()

    def before(which, batch):
        counts[which] += 1
        if which == part and fails(counts[which], batch):
            raise ERROR

    with watched(pipe, before):
        yield counts


def frames_of(pipe, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out = pipe(waves(2), ["a", "b"], generator=seeded(), **MORPH | options)
    told = [str(w.message) for w in caught if "Out of memory" in str(w.message)]
    return out.frames, told


CASES = {
    "noise": {},
    "clean": {"space": "clean", "metric": "score_jacobian"},
    "guided": {"guidance_scale": 2.0, "negative_prompt": "c", "metric": "likely"},
}


@pytest.mark.parametrize(
    ("case", "part"),
    [
        *((case, part) for case in ("noise", "clean") for part in ("network", "encode", "decode")),
        pytest.param("guided", "network", marks=pytest.mark.slow),
    ],
)
def test_a_failure_at_any_call_changes_nothing(pipe, case, part):
    with failing(pipe, part, lambda *_: False) as counts:
        expected, told = frames_of(pipe, **CASES[case])
    assert not told
    for number in range(1, counts[part] + 1):
        with failing(pipe, part, lambda n, _, number=number: n == number) as again:
            found, told = frames_of(pipe, **CASES[case])
        assert again[part] > counts[part] and len(told) <= 1
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_later_stages_keep_to_what_an_earlier_one_learned(pipe):
    """Only the first batches fail: the stages after them start with what fits."""
    expected, _ = frames_of(pipe)
    for part, limit in (("network", 1), ("decode", 1)):
        failed = []

        def fails(number, batch, limit=limit, failed=failed):
            failed.append(batch > limit)
            return batch > limit

        with failing(pipe, part, fails):
            found, told = frames_of(pipe)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        first = failed.index(True)
        last = len(failed) - 1 - failed[::-1].index(True)
        assert sum(failed) == last - first + 1 <= 2  # one after the other
        assert len(told) == 1 and f"continued with {limit} at once" in told[0]


def test_interpolated_attention_is_divided_with_both_keyframes(pipe):
    keys = pipe.invert(waves(3), "a", num_inference_steps=4, strength=1.0)
    path = pipe.solve(keys, "slerp", num_frames=[6, 2])
    expected = pipe.sample(path, attention_interpolation=1.0).latents
    with (
        failing(pipe, "network", lambda _, batch: batch > 4) as counts,
        pytest.warns(UserWarning, match="batch of 5: continued with 2 at once"),
    ):
        found = pipe.sample(path, attention_interpolation=1.0).latents
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert counts["network"] > 8


@pytest.mark.parametrize("part", ["network", "decode", "rest"])
def test_a_solved_path_is_not_lost(pipe, part, monkeypatch, tmp_path):
    """Memory runs out for good as soon as the path is found."""
    solved = []
    solve = type(pipe).solve

    def solves(self, *args, **options):
        solved.append(solve(self, *args, **options))
        return solved[-1]

    def fails(*args):
        if solved:
            raise ERROR
        return args[1], None

    expected, _ = frames_of(pipe)
    with monkeypatch.context() as patch:
        patch.setattr(type(pipe), "solve", solves)
        if part == "rest":
            patch.setattr(type(pipe), "_check_safety", fails)
        with failing(pipe, part, lambda *_: solved), pytest.raises(type(ERROR)) as caught:
            frames_of(pipe)
    path = caught.value.path
    assert is_out_of_memory(caught.value) and torch.equal(path.points, solved[0][0].points)
    assert (path.latents is None) == (part == "network")
    path = pipe.sample(path) if part == "network" else path
    path.save(tmp_path / "path.safetensors")
    loaded = MorphPath.load(tmp_path / "path.safetensors")
    torch.testing.assert_close(pipe.render(loaded, output_type="pt").frames, expected)


@pytest.mark.parametrize("keep", [[], ["--keep", "work"]])
def test_the_command_keeps_the_path(pipe, keep, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    pipe.save_pretrained("model")
    for i in range(2):
        noise = np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        PIL.Image.fromarray(noise).save(f"{i}.png")
    command = ["interpolate", "0.png", "1.png", "--model", "model", "--frames", "3", "--steps", "4"]
    command += ["--max-evals", "2", "--device", "cpu", "-o"]
    assert main([*command, "whole.png"]) == 0
    cls = type(pipe)

    def fails(*args, **options):
        raise ERROR

    with monkeypatch.context() as patch:
        patch.setattr(cls, "render", fails)
        assert main([*command, "out.png", *keep]) == 2
    folder = keep[1] if keep else "out-kept"
    (line,) = [text for text in capfd.readouterr().err.splitlines() if "error" in text]
    assert "out of memory" in line and line.endswith(f"run this again with --keep {folder}.")

    with monkeypatch.context() as patch:
        for stage in ("invert", "solve", "sample"):
            patch.setattr(cls, stage, fails)
        assert main([*command, "out.png", "--keep", folder]) == 0
    assert Path("out.png").read_bytes() == Path("whole.png").read_bytes()


def test_the_autoencoder_gets_a_limited_number_of_pixels(pipe, monkeypatch):
    sizes = []
    images, latents = waves(7), pipe.encode(waves(7))
    monkeypatch.setattr(batches, "PIXELS_AT_ONCE", 3 * 16 * 16 + 1)
    with watched(pipe, lambda _, batch: sizes.append(batch)):
        for size, expected in ((8, [3, 3, 1]), (2, [2, 2, 2, 1]), (None, [7])):
            sizes.clear()
            pipe.encode(images, max_batch_size=size)
            assert sizes == expected
            pipe.decode(latents, max_batch_size=size)
            assert sizes == 2 * expected
        monkeypatch.setattr(batches, "PIXELS_AT_ONCE", 10)
        sizes.clear()
        pipe.decode(latents, max_batch_size=8)
        assert sizes == [1] * 7


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (ERROR, True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_that_say_that_memory_ran_out(error, counts):
    assert is_out_of_memory(error) == counts


def test_a_batch_of_one_is_tried_twice(monkeypatch):
    freed = []
    monkeypatch.setattr(batches, "free_memory", lambda: freed.append(True))
    failures = [1, 1]

    def function(chunk):
        if failures and failures.pop():
            raise ERROR
        return chunk.stop

    assert list(BatchSize().run(2, function)) == [1, 2]  # fails with 2, fails with 1
    assert len(freed) == 2
    failures += [1, 1]
    with pytest.raises(torch.OutOfMemoryError):
        list(BatchSize().run(1, function))
    failures += [1]
    with pytest.raises(torch.OutOfMemoryError):
        list(BatchSize(divisible=False).run(4, function))
