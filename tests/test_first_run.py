"""What a new user of the command sees: progress, the time left, the result in words, flags."""

from __future__ import annotations

import ast
import contextlib
import inspect
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch

import riemannian_diffusion
from riemannian_diffusion import demo
from riemannian_diffusion.cli import main
from riemannian_diffusion.cli.flags import flags, with_flags
from riemannian_diffusion.cli.interrupts import STOPPING
from riemannian_diffusion.cli.progress import between, rounded
from riemannian_diffusion.events import Event
from riemannian_diffusion.geodesics import Geodesic
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline
from riemannian_diffusion.pipelines.expected import progress_of_solve
from riemannian_diffusion.pipelines.knowledge import SHIPPED, is_shipped, native_size, size_problem
from riemannian_diffusion.pipelines.progress import Estimate
from riemannian_diffusion.pipelines.quality import psnr, verdict

PACKAGE = Path(riemannian_diffusion.__file__).parent
FEW = ["--steps", "4", "--frames", "3", "--max-evals", "1", "--device", "cpu"]
COMMAND = [sys.executable, "-m", "riemannian_diffusion"]


# Messages name flags


def test_every_argument_that_an_option_is_passed_as_has_its_flag():
    own = {"generator", "points", "dir", "names"}  # made from an option, and named in no message
    checked = 0
    for file in (PACKAGE / "cli").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.keyword) or node.arg in (None, *own):
                continue
            read = [
                one.attr
                for one in ast.walk(node.value)
                if isinstance(one, ast.Attribute)
                and isinstance(one.value, ast.Name)
                and one.value.id == "args"
            ]
            if len(read) == 1:
                checked += 1
                assert flags().get(node.arg) == flags().get(read[0]), f"{node.arg} in {file}"
    assert checked > 20


def test_messages_of_the_stages_name_no_argument_that_has_neither_flag_nor_reason():
    pipe = GeodesicInterpolationPipeline
    stages = (pipe.condition, pipe.invert, pipe.solve, pipe.sample, pipe.retime, pipe.extend)
    stages += (pipe.transport, pipe.render)
    arguments = {name for stage in stages for name in inspect.signature(stage).parameters}
    # What the command never passes, or always passes rightly: no message about it can reach a user.
    never = {"callback_on_step_end", "conditions", "keys", "path", "score_mode"}
    never |= {"prompt_embeds", "negative_prompt_embeds", "ip_adapter_image_embeds", "class_labels"}
    never |= {"frame_numbers", "generator", "true_cfg_scale", "solver", "num_quadrature"}
    never |= {"cross_attention_kwargs", "bridge"}
    seen = set()
    for file in (PACKAGE / "pipelines").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            is_warning = isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "warn"
            if not isinstance(node, ast.Raise) and not is_warning:
                continue
            texts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
            for text in filter(lambda text: isinstance(text, str), texts):
                seen |= set(re.findall(r"`(\w+)[`=]", with_flags(text))) & arguments
    assert seen <= never


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("take a coarser `rtol`", "take a coarser --rtol"),
        ("`num_inference_steps=50`, or `strength=0.5`", "--steps 50, or --strength 0.5"),
        ("init='split' needs", "--init split needs"),
        ("with `safety_checker=None`.", "with --no-safety-checker."),
        ("far away; resize `image`.", "far away; choose another --size."),
        ("`model_index` and `x0`", "`model_index` and `x0`"),
    ],
)
def test_arguments_become_flags(message, told):
    assert with_flags(message) == told


# The time left

# Evaluations and energies of a solve by the shipped model: on 5 points, 9 and 17
MEASURED = [
    (1, 32.595),
    (3, 28.899),
    (4, 27.16),
    (5, 26.452),
    (6, 26.143),
    (7, 26.019),
    (8, 25.982),
    (9, 25.957),
    (10, 25.915),
    (11, 25.89),
    (12, 25.859),
    (13, 25.836),
    (14, 25.818),
    (16, 25.804),
    (17, 25.783),
    (18, 25.778),
    (19, 25.757),
    (20, 25.745),
    (21, 25.727),
    (23, 25.692),
    (24, 25.682),
    (25, 25.663),
    (26, 25.657),
    (27, 25.647),
    (28, 25.641),
    (29, 25.636),
    (30, 25.634),
    (31, 25.632),
    (32, 25.79),
    (33, 25.622),
    (34, 25.564),
    (35, 25.517),
    (36, 25.505),
    (37, 25.493),
    (38, 25.478),
    (39, 25.474),
    (40, 25.457),
    (41, 25.452),
    (42, 25.448),
    (43, 25.44),
    (45, 25.438),
    (46, 25.434),
    (47, 25.432),
    (48, 25.45),
    (49, 25.431),
    (51, 25.418),
    (52, 25.409),
]
CURVES = {5: 32, 9: 48, 17: 52}  # evaluations at the end of each curve


def cost(points):
    """Passes of an evaluation on a curve through some points."""
    return 2 * (2 * (points - 1) - 1)


class Job:
    """A morph that takes given seconds for each pass, as events and a clock."""

    def __init__(self, *, steps=30, frames=17):
        self.now, self.events, spent = 0.0, [], 0.0
        for i in range(steps + 1):
            calls = 3 * min(i, 3) + max(0, i - 3)  # three passes at the cleanest levels
            self.events.append((2 * calls, Event("invert", i, steps, calls=calls)))
        spent = self.events[-1][0]
        self.events.append((spent, Event("solve", 0)))
        energies = dict(MEASURED)
        for i in range(1, max(energies) + 1):
            spent += cost(next(points for points, end in CURVES.items() if i <= end))
            event = Event("solve", i, energy=energies.get(i, 99.0), iteration=i in energies)
            self.events.append((spent, event))
        self.events += [(spent + frames * i, Event("sample", i, steps)) for i in range(steps + 1)]
        spent = self.events[-1][0]
        self.events += [(spent + i, Event("decode", i, frames)) for i in range(frames + 1)]
        self.estimate = Estimate(
            {"invert": 2 * steps, "solve": 0, "sample": steps * frames, "decode": frames},
            points=2,
            solve=progress_of_solve("tangent_normal", [frames], None, 1e-4, 200),
            clock=lambda: self.now,
        )

    def predictions(self):
        """Each event, the predicted range of the time left after it, and the true one."""
        end = self.events[-1][0]
        for passes, event in self.events:
            self.now = 0.1 * passes
            self.estimate(event)
            yield event, self.estimate.seconds_left(), 0.1 * (end - passes)


def test_the_time_left_is_in_the_predicted_range():
    found = list(Job().predictions())
    assert found[0][1] is None and found[-1][1] == pytest.approx((0, 0), abs=0.1)
    right = []
    for event, (least, most), true in found[2:-2]:
        assert least <= most
        if event.stage in ("sample", "decode"):
            assert least == most == pytest.approx(true, rel=0.3, abs=1)
        else:
            right.append(least <= 1.15 * true and true <= 1.15 * most)
            assert most <= 6 * true
    assert sum(right) >= 0.9 * len(right)


def test_the_pace_is_right_on_every_curve():
    """An evaluation on a coarse curve costs less, and energies rise where a finer one begins."""
    job = Job()
    for event, _, _ in job.predictions():
        if event.stage == "solve" and event.done > 0:
            spent = sum(
                cost(points) * max(0, min(event.done, end) - start)
                for (points, end), start in zip(CURVES.items(), (0, *CURVES.values()), strict=False)
            )
            made = job.estimate._solve.passes
            assert made == pytest.approx(spent, rel=0.1, abs=2 * cost(17))


@pytest.mark.parametrize(
    ("metric", "frames", "evals", "init", "curves"),
    [
        ("tangent_normal", 17, 200, None, [5, 9, 17]),
        ("tangent_normal", 17, 30, None, [17]),  # too few evaluations for coarse curves
        ("stein", 17, 200, None, [17]),
        ("tangent_normal", 9, 200, ["slerp", "roadmap"], [5, 9, 9]),
    ],
)
def test_predicted_curves_are_those_of_the_solver(metric, frames, evals, init, curves):
    progress = progress_of_solve(metric, [frames], init, 1e-4, evals)
    assert [gap._curves for gap in progress._gaps] == [curves]
    assert progress_of_solve("slerp", [17], None, 1e-4, 200) is None


def test_gaps_that_have_ended_take_no_time():
    """One of two gaps ends after 15 evaluations, the other goes on."""
    progress = progress_of_solve("stein", [17, 17], None, 1e-4, 200)
    done = 0
    for i in range(40):
        for gap in range(2):
            if gap == 1 or i < 15:
                done += 1
                energy = 1 + 0.5**i
                progress(Event("solve", done, energy=energy, gap=gap, iteration=True))
        ended = sum(gap.ended_before(i + 1) for gap in progress._gaps)
        assert ended == (i >= 27)


def test_times_are_rounded_to_what_is_known():
    assert [rounded(s) for s in (0, 7, 38, 58, 200, 4000, 7200)] == [
        *("5 s", "5 s", "40 s", "1 min", "3 min", "1 h 10 min", "2 h")
    ]
    assert between(38, 39) == "about 40 s"
    assert between(7, 200) == "5 s to 3 min"


# The result in words


def outcome(errors, *, on_data=True, energy=3.0, bound=2.0, status="converged"):
    path = torch.zeros(3, 2)
    found = Geodesic(path, energy, bound, status=status, on_data=on_data)
    return SimpleNamespace(reconstruction_error=errors, geodesics=[found])


def test_the_verdict_names_reconstruction_energy_and_data():
    assert psnr(0.01) == pytest.approx(20) and psnr(0.0) == float("inf")
    assert verdict(outcome([1e-3, 1e-4])) == (
        "good: the images return with a PSNR of 30.0 and 40.0 dB; the energy is 1.5 times its "
        "lower bound; the path stays on the data"
    )
    assert verdict(outcome([2e-3, 1e-4])).startswith("fair: ")
    assert verdict(outcome([1e-4, 1e-4], status="max_evals")).startswith("fair: ")
    poor = verdict(outcome([2e-2, 1e-4]))
    assert poor.startswith("poor: ") and "data" not in poor  # the image is not on it
    assert verdict(outcome([1e-4] * 2, on_data=False)).endswith("the path leaves the data")
    assert verdict(outcome([1e-4] * 2, on_data=False)).startswith("poor: ")
    assert "data" not in verdict(outcome([1e-4] * 2, on_data=None))
    for errors in ([float("nan"), 1e-4], [1e-4, float("nan")]):
        assert verdict(outcome(errors)).startswith("poor: ")
    lost = verdict(outcome([1e-4] * 2, energy=float("nan"), status="nonfinite", on_data=None))
    assert lost == "poor: the images return with a PSNR of 40.0 and 40.0 dB"
    path = SimpleNamespace(transported=None)
    curve = {"reconstruction_error": [1e-4, 1e-3, 1e-4], "geodesics": [None, None]}
    assert verdict(SimpleNamespace(**curve, path=path)) == (
        "not judged: the images return with a PSNR of 30.0 dB at worst (image 2)"
    )
    path.transported = torch.zeros(3)  # its path runs from the second image by the first
    assert verdict(SimpleNamespace(**curve, path=path)).endswith("(image 1)")


# Images that the model does not know


@pytest.fixture(scope="module")
def shipped():
    return GeodesicInterpolationPipeline.from_pretrained(demo.model_path())


@pytest.fixture
def photos(tmp_path):
    """The names of two noisy images of 150 x 150 pixels."""
    noise = np.random.default_rng(0).integers(0, 255, (2, 150, 150, 3), dtype=np.uint8)
    names = [str(tmp_path / f"{i}.png") for i in range(2)]
    for name, pixels in zip(names, noise, strict=True):
        PIL.Image.fromarray(pixels).save(name)
    return names


def test_far_sizes_are_more_than_twice_or_less_than_half_the_models(shipped):
    assert is_shipped(shipped) and native_size(shipped) == 64
    assert size_problem(shipped, (128, 128)) is None and size_problem(shipped, (32, 32)) is None
    assert size_problem(shipped, (32, 256)) is None  # as many pixels as 90 x 90
    for size in ((132, 128), (28, 36)):
        assert f"{size[0]} x {size[1]} pixels" in size_problem(shipped, size)
        assert "`image`" in size_problem(shipped, size)


def test_python_is_told_what_the_shipped_model_knows(shipped):
    noise = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match=re.escape(SHIPPED)):
        shipped.invert(list(noise), num_inference_steps=2)
    large = [torch.zeros(3, 160, 160), torch.ones(3, 160, 160)]
    with pytest.warns(UserWarning, match=r"160 x 160 pixels.*resize `image`"):
        shipped.invert(large, num_inference_steps=2)


def test_the_command_refuses_far_sizes_that_size_does_not_confirm(photos, tmp_path, capsys):
    output = str(tmp_path / "out.png")
    words = ["interpolate", *photos, "-o", output, *FEW, "--metric", "slerp"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "150 x 150" in error and "--size 64" in error and "--size 150x150" in error
    assert main([*words, "--size", "64"]) == 0
    told = capsys.readouterr()
    assert told.err.count("only knows renders of five solids") == 1 and "--model" in told.err
    assert told.out.splitlines()[-1].startswith("  poor: the images return with a PSNR of ")
    assert json.loads(Path(output).with_suffix(".json").read_text())["quality"].startswith("poor")


def test_scale_makes_every_pixel_a_square(tmp_path):
    words = ["interpolate", *FEW, "--metric", "slerp"]
    assert main([*words, "-o", str(tmp_path / "small")]) == 0
    assert main([*words, "-o", str(tmp_path / "large"), "--scale", "3"]) == 0
    small = np.asarray(PIL.Image.open(tmp_path / "small" / "frame_0001.png"))
    large = np.asarray(PIL.Image.open(tmp_path / "large" / "frame_0001.png"))
    assert np.array_equal(large, small.repeat(3, 0).repeat(3, 1))


# Processes


@pytest.mark.slow
def test_everyday_commands_print_no_words_of_other_libraries(tmp_path):
    folder = tmp_path / "sequences" / "one"
    folder.parent.mkdir()
    commands = [
        ["--help"],
        ["models"],
        ["interpolate", "-o", str(folder), *FEW],
        ["interpolate", "-o", str(tmp_path / "m.mp4"), *FEW, "--metric", "slerp"],
        ["interpolate", str(tmp_path / "m.mp4"), "-o", str(tmp_path / "again.gif"), *FEW],
        ["evaluate", str(folder.parent), "--protocol", "any"],
    ]
    for words in commands:
        done = subprocess.run([*COMMAND, *words], capture_output=True, text=True)
        lines = done.stderr.splitlines()
        foreign = [line for line in lines if not line.startswith("riemannian-diffusion: ")]
        assert done.returncode == 0 and not foreign, (words, done.stderr)


@pytest.mark.slow
def test_an_interrupt_at_any_moment_is_one_line(tmp_path):
    moments, seconds = random.Random(0), time.perf_counter()
    words = [*COMMAND, "interpolate", *FEW, "--frames", "5", "-o", str(tmp_path / "m.gif")]
    subprocess.run([*words, "--force"], check=True, capture_output=True)
    seconds = time.perf_counter() - seconds
    for _ in range(8):
        process = subprocess.Popen(
            [*words, "--force", "--keep", str(tmp_path / "kept")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline()  # before it Python itself is starting
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moments.uniform(0, seconds))
        os.kill(process.pid, signal.SIGINT)
        _, error = process.communicate()
        if process.returncode != 0:  # it had ended
            assert process.returncode == 130, error
            assert error.splitlines()[-1].startswith("riemannian-diffusion: interrupted")
            assert error.removeprefix(f"{STOPPING}\n").count("\n") == 1
        assert not [one for one in tmp_path.rglob(".*")]
        with PIL.Image.open(tmp_path / "m.gif") as gif:
            assert gif.n_frames == 5


# an operation that blocks Python's handler, as a long one of PyTorch does
BLOCKED = """
import hashlib, signal, sys
from riemannian_diffusion.cli import interrupts
from riemannian_diffusion.files import unfinished, write_atomically
from pathlib import Path

def write(path):
    path.write_text("half")
    print("writing", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", int(sys.argv[1]))

signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run in the background
with interrupts.Interrupts():
    try:
        write_atomically(Path(sys.argv[2]), write)
    except KeyboardInterrupt:
        raise SystemExit(7)
"""


def blocked(tmp_path, rounds):
    """A process that writes a file and is then blocked, once it is."""
    words = [sys.executable, "-c", BLOCKED, str(rounds), str(tmp_path / "file")]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdout.readline() == "writing\n"
    time.sleep(0.2)  # until the operation has begun
    return process


def test_an_interrupt_in_a_long_operation_is_answered_at_once(tmp_path):
    process = blocked(tmp_path, 3_000_000)
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == f"{STOPPING}\n"
    assert process.wait() == 7 and not process.stderr.read()
    assert not [*tmp_path.iterdir()]


def test_a_second_interrupt_ends_the_process_and_leaves_nothing_half_written(tmp_path):
    process = blocked(tmp_path, 300_000_000)
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == f"{STOPPING}\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "riemannian-diffusion: interrupted\n"
    assert process.wait(30) == 130 and not [*tmp_path.iterdir()]


def test_commands_say_something_before_slow_imports(monkeypatch, capsys):
    for module in ("app", "pipelines.known"):
        monkeypatch.setitem(sys.modules, f"riemannian_diffusion.{module}", None)  # fails to import
    assert main(["app"]) == main(["models"]) == 2
    told = capsys.readouterr()
    assert told.out == "preparing the page ...\n"
    assert "looking through diffusers ..." in told.err


@pytest.mark.slow
def test_a_reader_that_ends_early_gets_no_complaint():
    with subprocess.Popen(
        [*COMMAND, "models"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == "riemannian-diffusion: looking through diffusers ...\n"
    assert process.returncode == 141


@pytest.mark.slow
def test_importing_a_pipeline_prints_no_advice_to_install_torchvision():
    code = (
        "import importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *a: None if name == 'torchvision' else find(name, *a)\n"
        "import transformers\n"
        "assert not transformers.utils.is_torchvision_available()\n"
        "from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
