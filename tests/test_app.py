from __future__ import annotations

import argparse
import os
import socket
import sys
import threading
import time
import weakref
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from models import FAST, make, to_pil

from riemannian_diffusion.adaptation import adapt
from riemannian_diffusion.cli import main

gr = pytest.importorskip("gradio")
pytest.importorskip("matplotlib")

from riemannian_diffusion.app import serve  # noqa: E402
from riemannian_diffusion.app.inputs import (  # noqa: E402
    Settings,
    check_numbers,
    check_size,
    check_upload,
    fit_images,
    frames_of_gaps,
    parse_prompts,
)
from riemannian_diffusion.app.kept import KeptWork  # noqa: E402
from riemannian_diffusion.app.labels import with_labels  # noqa: E402
from riemannian_diffusion.app.models import Models, Offer  # noqa: E402
from riemannian_diffusion.app.morphs import Energies  # noqa: E402
from riemannian_diffusion.app.outputs import (  # noqa: E402
    draw_energies,
    draw_speeds,
    sheet,
    steps,
    write_files,
)
from riemannian_diffusion.app.quota import Quota, network_of  # noqa: E402
from riemannian_diffusion.app.serving import is_local, uploads_folder, warnings_of  # noqa: E402
from riemannian_diffusion.app.studio import Cancelled, Studio  # noqa: E402
from riemannian_diffusion.app.words import in_words, table  # noqa: E402
from riemannian_diffusion.cli.app import check_models, names_of, read_auth  # noqa: E402
from riemannian_diffusion.events import Event  # noqa: E402
from riemannian_diffusion.media import read_clip  # noqa: E402
from riemannian_diffusion.pipelines import Keyframes  # noqa: E402

LONG = 900  # number of steps that takes much longer than any of these tests


def native_size(studio):
    with studio.request("me", quiet) as asked:
        return asked.native_size()


def quiet(phase, done, total):
    pass


@pytest.fixture
def pictures(keyframes):
    return to_pil(keyframes)


def studio_of(pipe):
    models = Models([Offer("tiny", lambda: pipe)])
    models.get("tiny")
    return Studio(models)


INVERSION = {name: FAST[name] for name in ("num_inference_steps", "strength")}
SOLVE = {name: FAST[name] for name in ("num_frames", "max_evals")}


def morphs_of(studio, images, *metrics, report=quiet, seed=0, **options):
    """Morphs with several metrics that share one inversion."""
    with studio.request("me", report) as asked:
        keys = asked.invert(images, seed=seed, **INVERSION | options)
        return [*asked.morphs(keys, metrics, seed=seed, **SOLVE)]


@pytest.fixture
def morphs(tiny_pipe, pictures):
    return morphs_of(studio_of(tiny_pipe), pictures, "tangent_normal", "slerp")


def test_there_is_one_prompt_or_one_for_each_keyframe():
    assert parse_prompts("  a cube \n") == "a cube"
    assert parse_prompts("a\n b\n\nc") == ["a", "b", "", "c"]
    assert parse_prompts("") == parse_prompts(None) == ""


def test_numbers_are_finite():
    check_numbers(fps=12, strength=0.5)
    for bad in (None, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"fps must be a finite number, but got {bad}"):
            check_numbers(strength=1, fps=bad)


def test_sizes_fit_the_model():
    assert check_size(64.0, 48.0, 16) == (64, 48)
    assert check_size(0, 0, 16) == (16, 16)
    for bad in ((65, 16), (16, 65), (-8, 16)):
        with pytest.raises(ValueError, match="Width and Height must be from 1 to 64"):
            check_size(*bad, 16)
    with pytest.raises(ValueError, match="Height must be a finite number"):
        check_size(16, None, 16)


def test_images_are_cropped_scaled_and_upright(tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255
    image = PIL.Image.fromarray(wide)
    exif = image.getexif()
    exif[0x0112] = 6  # the image must be rotated by 90 degrees
    image.save(tmp_path / "wide.png")
    image.save(tmp_path / "turned.png", exif=exif)
    first, second = fit_images([tmp_path / "wide.png", tmp_path / "turned.png"], (16, 8), print)
    assert first.size == second.size == (16, 8) and first.mode == "RGB"
    assert np.asarray(second)[4].min() == 255  # the middle of the wide image


def test_files_that_are_no_images_are_named(tmp_path):
    (tmp_path / "broken.png").write_text("no image")
    whole = (tmp_path / "whole.png", tmp_path / "half.png")
    PIL.Image.effect_noise((64, 64), 50).save(whole[0])
    whole[1].write_bytes(whole[0].read_bytes()[:1000])
    for name in ("broken.png", "half.png", "missing.png"):
        with pytest.raises(ValueError, match=f"^{name} cannot be read as an image"):
            fit_images([tmp_path / name], (16, 16), print)


def test_a_request_gives_what_the_pipeline_gives(tiny_pipe, pictures):
    reports = []
    studio = studio_of(tiny_pipe)
    assert native_size(studio) == 16

    def report(*phase):
        reports.append(phase)

    (found,) = morphs_of(studio, pictures, "stein", report=report, seed=5, space="clean")
    generator = torch.Generator().manual_seed(5)
    options = FAST | {"space": "clean", "metric": "stein", "generator": generator}
    expected = tiny_pipe(pictures, **options)
    assert [f.tobytes() for f in found.frames] == [f.tobytes() for f in expected.frames]
    assert found.errors == expected.reconstruction_error
    for iterations, geodesic in zip(found.solves, expected.geodesics, strict=True):
        assert tuple(map(tuple, iterations)) == geodesic.iterates
    phase, done, total = reports[-1]
    assert phase.startswith("stein: Solving, energy ")
    assert done == sum(geodesic.num_evals for geodesic in expected.geodesics) <= total
    morphs_of(studio, pictures, "slerp", report=report)
    assert reports[-1] == ("slerp: Sampling", 4, 4) and ("Inverting", 1, 4) in reports


def test_metrics_are_compared_on_one_inversion(tiny_pipe, pictures):
    reports = []
    metrics = ("lerp", "slerp")
    found = morphs_of(
        studio_of(tiny_pipe), pictures, *metrics, report=lambda *phase: reports.append(phase)
    )
    assert found[0].frames[1].tobytes() != found[1].frames[1].tobytes()
    phases = list(dict.fromkeys(phase for phase, _, _ in reports))
    assert phases == [
        "Inverting",
        *(f"{metric}: Solving" for metric in metrics),
        "lerp and slerp: Sampling",  # in one batch
    ]
    assert sum(phase == "Inverting" and done == 0 for phase, done, _ in reports) >= 1


def test_a_metric_that_fails_loses_no_other(tiny_pipe, pictures, monkeypatch):
    """The morph by the metric before it is shown, then the error."""
    solve = type(tiny_pipe).solve

    def fails(pipe, keys, metric, **options):
        if metric == "slerp":
            raise MemoryError("too large")
        return solve(pipe, keys, metric, **options)

    monkeypatch.setattr(type(tiny_pipe), "solve", fails)
    with studio_of(tiny_pipe).request("me", quiet) as asked:
        keys = asked.invert(pictures, seed=0, **INVERSION)
        found = asked.morphs(keys, ["lerp", "slerp"], seed=0, **SOLVE)
        assert next(found).name == "lerp"
        with pytest.raises(MemoryError, match="too large"):
            next(found)
        with pytest.raises(MemoryError, match="too large"):
            next(asked.morphs(keys, ["slerp", "lerp"], seed=0, **SOLVE))


ASKED = Settings(
    *("shipped", [("a.png", None)] * 2, "", "slerp", "none", 3, "", 12, 0.6, 0, 0, "", 1, 0, 4, 1),
    *([], "no", "noise", 0, "no", 0, None, False, False, 0),
)


@pytest.mark.parametrize(
    ("label", "changed"),
    [
        ("Frames must be a whole number, but got 2.5", {"num_frames": 2.5}),
        ("Seed must be a whole number, but got 0.5", {"seed": 0.5}),
        ("Steps must be a whole number", {"steps": 1.5}),
        ("Evaluations at most must be a whole number", {"max_evals": 1.5}),
        ("Frames/s must be from 0.01 to 1000, but got 0", {"fps": 0}),
        ("Seed must be from 0", {"seed": -1}),
        ("Steps must be a finite number, but got None", {"steps": None}),
    ],
)
def test_settings_are_checked_before_the_work(label, changed):
    ASKED.check()
    with pytest.raises(ValueError, match=label):
        replace(ASKED, **changed).check()


def test_messages_name_the_labels_of_the_page(tiny_pipe, pictures):
    """And no argument that the page lacks."""
    with studio_of(tiny_pipe).request("me", quiet) as asked:
        keys = asked.invert(pictures, seed=0, space="clean", **INVERSION)
        with pytest.raises(ValueError, match="adain") as error:
            next(asked.morphs(keys, ["lerp"], seed=0, attention_interpolation=0.5, **SOLVE))
        assert with_labels(str(error.value)).startswith("“Attention interpolation” is an option of")
        with pytest.raises(ValueError, match="Prompts, ") as error:
            asked.invert(pictures[:2], seed=0, prompt=["a", "b", "c"], **INVERSION)
        assert "one line for all images, or one for each" in with_labels(str(error.value))


def test_repeated_energies_count_once():
    energies = Energies()
    for gap, done, energy in ((0, 1, 5.0), (1, 2, 7.0), (0, 3, 4.0), (1, 5, 6.0)):
        event = Event("solve", done, energy=energy, gap=gap, iteration=True)
        for _ in range(3):
            energies(event)
    energies(Event("solve", 6, energy=9.0, gap=1))  # this evaluation does not end an iteration
    assert energies.solves == [[(1, 5.0), (2, 4.0)], [(1, 7.0), (3, 6.0)]]


@pytest.mark.parametrize("kind", ["xl", "sd3", "flux", "dit", "pixels"])
def test_every_kind_of_model(kind, pictures):
    studio, reports = studio_of(make(kind)), []
    (morph,) = morphs_of(
        studio, pictures[:2], "tangent_normal", report=lambda *phase: reports.append(phase)
    )
    assert len(morph.frames) == FAST["num_frames"] and reports and len(morph.solves) == 1
    assert native_size(studio) in (
        16,
        256,
    )  # the size of Flux comes from its pipeline, not from its network


@pytest.mark.parametrize("metric", ["tangent_normal", "density"])
@pytest.mark.parametrize("stage", ["invert", "solve"])
def test_stopping_is_quick_and_does_not_change_the_pipeline(tiny_pipe, pictures, metric, stage):
    studio, left, reached = studio_of(tiny_pipe), threading.Event(), threading.Event()
    steps = LONG if stage == "invert" else 8

    def report(phase, done, total):
        if stage == "invert" or "Solving" in phase:
            reached.set()

    def work():
        with pytest.raises(Cancelled), studio.request("me", report) as asked:
            keys = asked.invert(
                pictures, seed=0, prompt="a", strength=0.9, num_inference_steps=steps
            )
            next(asked.morphs(keys, [metric], seed=0, num_frames=LONG, max_evals=LONG))
        left.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert reached.wait(30)
    studio.stop("you")
    assert not left.wait(0.5)
    studio.stop("me")
    assert left.wait(10)
    thread.join()
    assert morphs_of(studio, pictures, "slerp")[0].frames


def test_files(morphs, tmp_path):
    video, animation, packed = write_files(morphs[0], tmp_path, 12, ping_pong=True)
    assert len(read_clip(Path(video)).frames) == len(read_clip(Path(animation)).frames) == 12
    with zipfile.ZipFile(packed) as archive:
        assert archive.namelist() == [f"frame_{i:04d}.png" for i in range(7)]
        with archive.open("frame_0002.png") as file:
            assert PIL.Image.open(file).tobytes() == morphs[0].frames[2].tobytes()


def test_sheet_and_figures(morphs):
    assert sheet(morphs).size == (92 + 7 * 16, 2 * 16)
    shown = steps(morphs)
    assert len(shown) == 7 and shown[3][0].size == (2 * 16, 16) and "frame 4 of 7" in shown[3][1]
    assert shown[3][0].crop((16, 0, 32, 16)).tobytes() == morphs[1].frames[3].tobytes()
    assert [line.get_label() for line in draw_energies(morphs).axes[0].lines] == [
        "tangent_normal, gap 1",
        "tangent_normal, gap 2",
    ]
    assert draw_energies(morphs[1:]) is None
    assert len(draw_speeds(morphs).axes[0].lines) == 2


def test_results_in_words(morphs):
    text = in_words(morphs)
    for morph in morphs:
        assert f"**{morph.name}** is {morph.verdict}." in text
        # one model has warned of the same images twice
        assert morph.warnings and text.count("**Warning:**") == len(morph.warnings)
    assert "“Evaluations at most” was reached" in text and "`" not in text


def test_the_more_even_morph_is_named(morphs):
    even = [PIL.Image.new("RGB", (16, 16), (10 * i,) * 3) for i in range(5)]
    first, second = morphs
    first, second = (
        replace(first, frames=even),
        replace(second, frames=[*even[:4], morphs[0].frames[0]]),
    )
    for pair in ((first, second), (second, first)):
        text = in_words(pair)
        assert "**tangent_normal** changes more evenly than **slerp**." in text
        assert "changes evenly: between two frames by up to 1.0 times the mean" in text
        assert "changes unevenly" in text
    assert "equally evenly" in in_words((first, replace(second, frames=even)))


def test_table(morphs, tiny_pipe, pictures):
    rows = [line.split(" | ") for line in table(morphs).splitlines()]
    assert rows[0][1:4] == ["tangent_normal, gap 1", "tangent_normal, gap 2", "slerp, gap 1"]
    assert rows[2][1:] == [
        *(f"{found.energy:.4g}" for found in morphs[0].geodesics),
        *("–", "– |"),
    ]
    likely = morphs_of(studio_of(tiny_pipe), pictures[:2], "likely")
    assert "| lower bound | – |" in table(likely)  # unknown, so it is left out


def test_inverted_images_serve_the_next_metric(tiny_pipe, pictures):
    studio, reports = studio_of(tiny_pipe), []

    def ask(visitor, **options):
        reports.clear()
        with studio.request(visitor, lambda *phase: reports.append(phase[0])) as asked:
            keys = asked.invert(pictures, seed=0, **INVERSION | options)
            (morph,) = asked.morphs(keys, ["stein"], seed=0, **SOLVE)
        assert not (asked.reused and "Inverting" in reports)
        return asked.reused, [frame.tobytes() for frame in morph.frames]

    first, second = ask("me"), ask("me")
    assert (first[0], second[0]) == (False, True) and first[1] == second[1]
    assert not ask("me", strength=0.7)[0] and not ask("me", space="clean")[0]
    assert not ask("you")[0]
    studio.leave("me")
    assert len(studio.kept) == 1 and not ask("me")[0] and ask("you")[0]


def test_what_was_fitted_serves_the_next_metric(tiny_pipe, pictures):
    """Embeddings of three images, of which the third is changed as the others change."""
    studio, reports = studio_of(tiny_pipe), []
    options = INVERSION | {"adapt": "embeddings", "prompt": ["a", "b", "c"]}
    frames = []
    for metric in ("lerp", "slerp"):
        reports.clear()
        with studio.request("me", lambda *phase: reports.append(phase[0])) as asked:
            inverted = asked.invert(pictures[:2], pictures[2], seed=0, **options)
            (morph,) = asked.morphs(inverted, [metric], seed=0, **SOLVE)
        frames.append([frame.tobytes() for frame in morph.frames])
        assert ("Fitting embeddings" in reports) == (metric == "lerp") != asked.reused
    adaptation = adapt(tiny_pipe, pictures, ["a", "b", "c"], lora_steps=0)
    conditions = tiny_pipe.condition(["a", "b", "c"], adaptation=adaptation)
    keys = tiny_pipe.invert(pictures[:2], conditions=conditions.at_knots([0, 1]), **INVERSION)
    theirs = conditions.at_knots([2])
    for found, metric in zip(frames, ("lerp", "slerp"), strict=True):
        path = tiny_pipe.sample(tiny_pipe.solve(keys, metric, **SOLVE))
        path = tiny_pipe.transport(path, pictures[2], conditions=theirs, max_evals=3)
        assert found == [frame.tobytes() for frame in tiny_pipe.render(path).frames]


def test_fitting_stops(tiny_pipe, pictures):
    studio, reports = studio_of(tiny_pipe), []

    def report(phase, *_):
        reports.append((phase, *_))
        studio.stop("me")

    with pytest.raises(Cancelled), studio.request("me", report) as asked:
        asked.invert(pictures, seed=0, adapt="embeddings", **INVERSION)
    assert reports == [("Fitting embeddings", 1, 3 * 50)]


def test_an_address_may_upload_so_much_in_a_time():
    now = [1000.0]
    quota = Quota(3, 100, 600, lambda: now[0])
    assert all(quota.spend("10.0.0.1", uploads=1) for _ in range(3))
    assert not quota.spend("10.0.0.1", uploads=1)
    assert quota.spend("10.0.0.2", uploads=1, num_bytes=100)
    assert not quota.spend("10.0.0.2", num_bytes=1) and quota.spend("10.0.0.1", num_bytes=100)
    now[0] += 300
    assert not quota.spend("10.0.0.1", uploads=1)
    now[0] += 420
    assert quota.spend("10.0.0.1", uploads=1, num_bytes=100) and len(quota._spent) == 1
    assert network_of("::ffff:10.0.0.1") == "10.0.0.1" and network_of("unknown") == "unknown"
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:1") != network_of("2001:db9::1")


def test_kept_keyframes_are_limited_in_number_size_and_age(tiny_pipe, pictures):
    keys = tiny_pipe.invert(pictures, **INVERSION)
    kept = KeptWork(per_visitor=2, num=3)
    for i in range(3):
        kept.keep("me", str(i), keys)
    assert kept.find("me", "0", Keyframes) is None
    assert kept.find("me", "2", Keyframes) is not None
    for visitor in ("you", "she"):
        kept.keep(visitor, "0", keys)
    assert len(kept) == 3 and kept.find("me", "1", Keyframes) is None
    (file,) = [one.file for key, one in kept._entries.items() if key == ("you", "0")]
    size = file.stat().st_size
    small = KeptWork(num_bytes=size + 1)
    for i in range(2):
        small.keep("me", str(i), keys)
    assert len(small) == 1 and small.find("me", "1", Keyframes) is not None
    short = KeptWork(seconds=0.2)
    short.keep("me", "0", keys)
    deadline = time.monotonic() + 20
    while len(short) and time.monotonic() < deadline:  # nobody asks for it
        time.sleep(0.05)
    assert len(short) == 0 and not list(Path(short._folder.name).iterdir())


def test_one_model_at_a_time_is_in_memory():
    made, alive = [], weakref.WeakSet()

    class Pipe:
        pass

    def load(name):
        assert not alive  # the one before is gone
        made.append(name)
        pipe = Pipe()
        alive.add(pipe)
        return pipe

    models = Models([Offer(name, partial(load, name), 10**9) for name in "ab"])
    assert not made and "1.0 GB of files" in models.describe("b")
    for name in "aaba":
        models.get(name)
    assert made == ["a", "b", "a"] and models.is_loaded("a") and not models.is_loaded("b")
    with pytest.raises(ValueError, match="Model must be one of a, b, but got '/etc'"):
        models.get("/etc")
    with pytest.raises(ValueError, match="different names"):
        Models([Offer("a", Pipe), Offer("a", Pipe)])


def test_frames_at_which_images_are_shown():
    assert frames_of_gaps("0, 12 48", 3) == [13, 37] and frames_of_gaps(" ", 3) == []
    for bad in ("1, 5", "0, 5, 5", "0, -3", "0, x", "0, 900", "0, ٣"):
        with pytest.raises(ValueError, match="Images at frames must be whole numbers"):
            frames_of_gaps(bad, 2)
    with pytest.raises(ValueError, match="one number for each of 3 images, but got 2"):
        frames_of_gaps("0, 5", 3)


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path):
    image = PIL.Image.new("1", (9000, 9000))
    image.save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 50_000
    with pytest.raises(ValueError, match="^bomb.png has 9000 x 9000 pixels, more than 50 million"):
        check_upload(tmp_path / "bomb.png")


def test_passwords(capsys):
    assert read_auth(None, None) is None
    assert read_auth(None, "ann:se:cret") == ("ann", "se:cret")
    assert read_auth("bob:x", "ann:y") == ("bob", "x")
    for bad in ("secret", ":secret", "ann:", ""):
        with pytest.raises(ValueError, match="--auth must be a name and a password") as error:
            read_auth(bad, None)
        assert "secret" not in str(error.value)
    with pytest.raises(ValueError, match="^RIEMANNIAN_DIFFUSION_AUTH must be"):
        read_auth(None, "secret")


def test_addresses_beyond_this_machine_are_warned_of():
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.9"):
        assert is_local(host) and not warnings_of(host, None)
    for host in ("0.0.0.0", "192.168.1.4", "::", "example.org"):
        (text,) = warnings_of(host, None)
        assert "everybody who reaches this machine" in text and "--auth" in text
        (text,) = warnings_of(host, ("ann", "secret"))
        assert "unencrypted" in text and "secret" not in text


def test_uploads_are_deleted_at_the_end(monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "/before")
    with pytest.raises(KeyboardInterrupt), uploads_folder() as folder:
        assert os.environ["GRADIO_TEMP_DIR"] == str(folder)
        (folder / "upload").mkdir()
        (folder / "upload" / "photo.png").touch()
        raise KeyboardInterrupt
    assert not folder.exists() and os.environ["GRADIO_TEMP_DIR"] == "/before"


def test_several_models_of_a_command_line(tmp_path):
    (tmp_path / "a" / "flux").mkdir(parents=True)
    (tmp_path / "b" / "flux").mkdir(parents=True)
    given = [None, f"{tmp_path}/a/flux", f"{tmp_path}/b/flux", "org/name"]
    assert names_of(given) == ["shipped", "flux", "flux (2)", "org/name"]
    options = dict.fromkeys(("config", "variant", "vae", "lora"))
    check_models(argparse.Namespace(**options), given)
    with pytest.raises(ValueError, match="--vae fits one --model, but 4 are given"):
        check_models(argparse.Namespace(**options | {"vae": "x"}), given)
    with pytest.raises(ValueError, match="--model shipped is given twice"):
        check_models(argparse.Namespace(**options), [None, None])


def test_command_without_gradio_says_how_to_install_it(monkeypatch, capsys):
    for name in [n for n in sys.modules if n.startswith("riemannian_diffusion.app")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app"]) == 2
    error = capsys.readouterr().err
    assert "pip install 'riemannian-diffusion[app]'" in error and error.count("\n") == 1


def test_command_serves_only_this_machine(tiny_pipe, tmp_path, monkeypatch):
    tiny_pipe.save_pretrained(tmp_path)
    launched = {}
    monkeypatch.setattr(gr.Blocks, "launch", lambda page, **options: launched.update(options))
    monkeypatch.setenv("RIEMANNIAN_DIFFUSION_AUTH", "ann:secret")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = [
        "--port",
        str(port),
        "--model",
        str(tmp_path),
        "--model",
        "shipped",
        "--allow-host",
        "morphs.example",
    ]
    assert main(["app", *given, "--device", "cpu"]) == 0
    (guard,) = launched["app_kwargs"]["middleware"]
    assert guard.kwargs["auth"] == ("ann", "secret") and "morphs.example" in guard.kwargs["names"]
    assert not guard.kwargs["folder"].exists()
    assert launched["server_name"] == "127.0.0.1" and launched["server_port"] == port
    assert launched["share"] is False


@pytest.mark.parametrize("given", [("--allow-host", "http://x.org/"), ("--port", "99999")])
def test_bad_addresses_are_refused_before_the_work(given, capsys):
    assert main(["app", *given]) == 2
    assert f"error: {given[0]} must be" in capsys.readouterr().err


def test_a_port_in_use_is_reported(tiny_pipe):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="^--port .* of --host 127.0.0.1 cannot be used"):
            serve(tiny_pipe, *taken.getsockname())
