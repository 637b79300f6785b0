from __future__ import annotations

import json
import shutil
import socket
import sys
import tempfile
import threading
import time
import urllib.request
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from models import FAST, make, to_pil

from riemannian_diffusion.cli import main

gr = pytest.importorskip("gradio")
pytest.importorskip("matplotlib")

from gradio_client import Client, handle_file  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402

from riemannian_diffusion.app import build, serve  # noqa: E402
from riemannian_diffusion.app.inputs import (  # noqa: E402
    check_numbers,
    check_size,
    fit_images,
    parse_prompts,
)
from riemannian_diffusion.app.outputs import (  # noqa: E402
    draw_energies,
    draw_speeds,
    sheet,
    summarise,
    write_files,
)
from riemannian_diffusion.app.studio import Cancelled, Energies, Studio  # noqa: E402
from riemannian_diffusion.events import Event  # noqa: E402
from riemannian_diffusion.media import read_clip  # noqa: E402

LONG = 900  # number of steps that takes much longer than any of these tests


def quiet(phase, done, total):
    pass


@pytest.fixture
def pictures(keyframes):
    return to_pil(keyframes)


INVERSION = {name: FAST[name] for name in ("num_inference_steps", "strength")}
SOLVE = {name: FAST[name] for name in ("num_frames", "max_evals")}


def morphs_of(studio, images, *metrics, report=quiet, seed=0, **options):
    """Morphs with several metrics that share one inversion."""
    with studio.request("me", report) as asked:
        keys = asked.invert(images, seed=seed, **INVERSION | options)
        return [asked.morph(keys, name, seed=seed, **SOLVE) for name in metrics]


@pytest.fixture
def morphs(tiny_pipe, pictures):
    return morphs_of(Studio(tiny_pipe), pictures, "tangent_normal", "slerp")


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
    for bad in ((65, 16), (16, 0), (-8, 16)):
        with pytest.raises(ValueError, match="Width and height must be from 1 to 64"):
            check_size(*bad, 16)
    with pytest.raises(ValueError, match="height must be a finite number"):
        check_size(16, None, 16)


def test_images_are_cropped_scaled_and_upright(tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255
    image = PIL.Image.fromarray(wide)
    exif = image.getexif()
    exif[0x0112] = 6  # the image must be rotated by 90 degrees
    image.save(tmp_path / "wide.png")
    image.save(tmp_path / "turned.png", exif=exif)
    first, second = fit_images([tmp_path / "wide.png", tmp_path / "turned.png"], (16, 8))
    assert first.size == second.size == (16, 8) and first.mode == "RGB"
    assert np.asarray(second)[4].min() == 255  # the middle of the wide image


def test_files_that_are_no_images_are_named(tmp_path):
    (tmp_path / "broken.png").write_text("no image")
    whole = (tmp_path / "whole.png", tmp_path / "half.png")
    PIL.Image.effect_noise((64, 64), 50).save(whole[0])
    whole[1].write_bytes(whole[0].read_bytes()[:1000])
    for name in ("broken.png", "half.png", "missing.png"):
        with pytest.raises(ValueError, match=f"^{name} cannot be read as an image"):
            fit_images([tmp_path / name], (16, 16))


def test_a_request_gives_what_the_pipeline_gives(tiny_pipe, pictures):
    reports = []
    studio = Studio(tiny_pipe)
    assert studio.native_size == 16

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
    assert done == sum(geodesic.num_evals for geodesic in expected.geodesics) and total is None
    morphs_of(studio, pictures, "slerp", report=report)
    assert reports[-1] == ("slerp: Sampling", 4, 4) and ("Inverting", 1, 4) in reports


def test_metrics_are_compared_on_one_inversion(tiny_pipe, pictures):
    reports = []
    metrics = ("lerp", "slerp")
    found = morphs_of(
        Studio(tiny_pipe), pictures, *metrics, report=lambda *phase: reports.append(phase)
    )
    assert found[0].frames[1].tobytes() != found[1].frames[1].tobytes()
    phases = list(dict.fromkeys(phase for phase, _, _ in reports))
    assert phases == [
        "Inverting",
        *(f"{metric}: {phase}" for metric in metrics for phase in ("Solving", "Sampling")),
    ]
    assert sum(phase == "Inverting" and done == 0 for phase, done, _ in reports) >= 1


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
    studio, reports = Studio(make(kind)), []
    (morph,) = morphs_of(
        studio, pictures[:2], "tangent_normal", report=lambda *phase: reports.append(phase)
    )
    assert len(morph.frames) == FAST["num_frames"] and reports and len(morph.solves) == 1
    assert studio.native_size in (
        16,
        256,
    )  # the size of Flux comes from its pipeline, not from its network


@pytest.mark.parametrize("metric", ["tangent_normal", "density"])
@pytest.mark.parametrize("stage", ["invert", "solve"])
def test_stopping_is_quick_and_does_not_change_the_pipeline(tiny_pipe, pictures, metric, stage):
    studio, left, reached = Studio(tiny_pipe), threading.Event(), threading.Event()
    steps = LONG if stage == "invert" else 8

    def report(phase, done, total):
        if stage == "invert" or "Solving" in phase:
            reached.set()

    def work():
        with pytest.raises(Cancelled), studio.request("me", report) as asked:
            keys = asked.invert(
                pictures, seed=0, prompt="a", strength=0.9, num_inference_steps=steps
            )
            asked.morph(keys, metric, seed=0, num_frames=LONG, max_evals=LONG)
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
    video, packed = write_files(morphs[0], tmp_path, 12)
    assert len(read_clip(Path(video)).frames) == 7
    with zipfile.ZipFile(packed) as archive:
        assert archive.namelist() == [f"frame_{i:04d}.png" for i in range(7)]
        with archive.open("frame_0002.png") as file:
            assert PIL.Image.open(file).tobytes() == morphs[0].frames[2].tobytes()


def test_sheet_and_figures(morphs):
    assert sheet(morphs).size == (92 + 7 * 16, 2 * 16)
    assert [line.get_label() for line in draw_energies(morphs).axes[0].lines] == [
        "tangent_normal, gap 1",
        "tangent_normal, gap 2",
    ]
    assert draw_energies(morphs[1:]) is None
    assert len(draw_speeds(morphs).axes[0].lines) == 2


def test_summary(morphs):
    text = summarise(morphs)
    assert "tangent_normal, gap 2" in text and morphs[0].geodesics[0].message in text
    assert f"{morphs[0].geodesics[1].lower_bound:.4g}" in text
    assert "| slerp, gap 1 | – | – | – |" in text
    for morph in morphs:  # one model has warned of the same images twice
        assert morph.warnings and text.count(f"**Warning:** {morph.warnings[0]}") == 1


def test_an_unknown_lower_bound_is_left_out(tiny_pipe, pictures):
    text = summarise(morphs_of(Studio(tiny_pipe), pictures[:2], "likely", "split"))
    (row,) = (line for line in text.splitlines() if line.startswith("| likely |"))
    assert row.split("|")[3] == " – " and "| split | – | – | – |" in text


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
    assert main(["app", "--model", str(tmp_path), "--device", "cpu"]) == 0
    assert launched["server_name"] == "127.0.0.1" and launched["server_port"] == 7860
    assert launched["share"] is False


def test_a_port_in_use_is_reported(tiny_pipe):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="^--port .* of --host 127.0.0.1 cannot be used"):
            serve(tiny_pipe, *taken.getsockname())


@pytest.fixture
def served(tiny_pipe, tmp_path, monkeypatch):
    """The address of the page of the tiny pipeline."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv(
        "GRADIO_HEARTBEAT_INTERVAL", "0.5"
    )  # interval in which the server notices that a client has left
    page = build(tiny_pipe)
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, share=False, ssr_mode=False)
    yield url
    page.close()


@pytest.fixture
def paths(pictures, tmp_path):
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
    return [str(tmp_path / f"{i}.png") for i in range(len(pictures))]


def arguments(paths, **more):
    """Arguments of /morph, with `FAST` options."""
    images = [{"image": handle_file(path), "caption": None} for path in paths]
    fast = FAST | {"steps": FAST["num_inference_steps"], "other": "none"}
    del fast["num_inference_steps"]
    return {"images": images, "prompts": ""} | fast | more


def frames_in(result):
    (packed,) = [path for path in result[-1] if path.endswith(".zip")]
    with zipfile.ZipFile(packed) as archive:
        return [PIL.Image.open(archive.open(name)).tobytes() for name in archive.namelist()]


def client_of(url):
    return Client(url, verbose=False)


def test_five_visitors_at_once_get_their_own_results(served, paths, tiny_pipe, pictures):
    orders = [(0, 1), (1, 2), (2, 0), (1, 0), (0, 1)]
    clients = [client_of(served) for _ in orders]

    def visit(i):
        mine = arguments([paths[k] for k in orders[i]], seed=i, space="clean", metric="stein")
        return clients[i].predict(api_name="/morph", **mine)

    with ThreadPoolExecutor(5) as pool:
        results = list(pool.map(visit, range(5)))
    for i, result in enumerate(results):
        expected = tiny_pipe(
            [pictures[k] for k in orders[i]],
            metric="stein",
            space="clean",
            generator=torch.Generator().manual_seed(i),
            **FAST,
        )
        assert frames_in(result) == [frame.tobytes() for frame in expected.frames]
    assert len({tuple(frames_in(result)) for result in results}) == 5


def test_a_comparison_leaves_files_only_in_the_cache(served, paths, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    result = client_of(served).predict(api_name="/morph", **arguments(paths, other="slerp"))
    assert "tangent_normal, gap 1" in result[0] and "| slerp, gap 2 |" in result[0]
    names = [path.rpartition("/")[2] for path in result[-1]]
    assert names == [
        f"{m}{end}" for m in ("tangent_normal", "slerp") for end in (".mp4", "_frames.zip")
    ]
    assert not list((tmp_path / "temporary").glob(f"{tempfile.gettempprefix()}*"))
    assert not [path for path in (tmp_path / "temporary").rglob("*") if path.is_file()]


@pytest.mark.parametrize("action", ["cancel", "leave"])
def test_a_visitor_who_cancels_or_leaves_makes_room(served, paths, action):
    slow, fast = client_of(served), client_of(served)
    job = slow.submit(
        api_name="/morph", **arguments(paths, steps=200, max_evals=LONG, num_frames=65)
    )
    while not (job.status().progress_data or []):
        time.sleep(0.05)
    waiting = fast.submit(api_name="/morph", **arguments(paths[:2], metric="slerp"))
    time.sleep(0.5)
    assert not waiting.done()
    if action == "cancel":
        assert slow.predict(api_name="/cancel") == "Cancelled."
    else:
        slow.close()
    assert "slerp" in waiting.result(timeout=20)[0]


def test_bad_input_gives_a_message_and_the_page_still_works(served, paths, tmp_path):
    client = client_of(served)
    (tmp_path / "broken.png").write_text("no image")
    cases = [
        (arguments(paths[:1]), "A morph needs at least 2 images, but got 1"),
        (arguments([]), "A morph needs at least 2 images, but got 0"),
        (arguments(paths, prompts="a\nb"), "one for each, but there are 2 for 3 keyframes"),
        (arguments([paths[0], str(tmp_path / "broken.png")]), "broken.png cannot be read"),
        (arguments(paths, width=15), "Height and width must be multiples of 2"),
        (arguments(paths, width=9000), "Width and height must be from 1 to 64"),
        (arguments(paths, seed=None), "seed must be a finite number, but got None"),
        (arguments(paths, metric="nao", space="clean"), "needs space='noise', but got 'clean'"),
        (arguments(paths, steps=1), "leaves no step"),
    ]
    for given, message in cases:
        with pytest.raises(AppError) as error:
            client.predict(api_name="/morph", **given)
        assert message in str(error.value)
    good = client.predict(api_name="/morph", **arguments(paths, metric="slerp"))
    assert len(frames_in(good)) == 7


def test_page_contacts_no_other_machine(served):
    with urllib.request.urlopen(f"{served}config") as answer:
        assert json.load(answer)["analytics_enabled"] is False


@pytest.fixture
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium")
    with api.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.slow
def test_in_the_browser(served, browser, paths, tmp_path):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    strangers = []
    local = (served, "data:", "blob:")
    page.on("request", lambda r: None if r.url.startswith(local) else strangers.append(r.url))
    page.goto(served)
    morph = page.get_by_role("button", name="Morph", exact=True)
    page.get_by_label("number input for Frames", exact=True).fill("3")
    page.get_by_text("Advanced").click()
    page.get_by_label("number input for Steps of the whole schedule").fill("6")
    page.get_by_label("number input for Evaluations at most").fill("3")
    page.get_by_text("Advanced").click()

    morph.click()
    page.locator("video").nth(1).wait_for(timeout=60_000)
    page.get_by_role("cell", name="tangent_normal", exact=True).wait_for()
    strip = page.locator("#frames img")
    strip.wait_for()
    assert strip.evaluate("image => image.naturalWidth") == 92 + 3 * 16
    for video in page.locator("video").all():
        video.evaluate("v => v.readyState >= 2 || new Promise(r => v.onloadeddata = r)")
        assert video.evaluate("v => v.videoWidth") == 16
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    with PIL.Image.open(tmp_path / "page.png") as shot:
        assert shot.width == 1280 and len(np.unique(np.asarray(shot.convert("L")))) > 50

    page.get_by_label("Clear").first.click()
    page.locator("input[type=file]").first.set_input_files(paths[:1])
    page.locator("#images img").wait_for()
    morph.click()
    page.get_by_text("A morph needs at least 2 images, but got 1").wait_for(timeout=20_000)
    assert not strangers


@pytest.mark.slow
def test_browsers_that_cancel_or_leave_make_room(served, browser, paths):
    pages = [browser.new_page() for _ in range(2)]
    for page in pages:
        page.goto(served)
        page.get_by_text("Advanced").click()
        page.get_by_label("number input for Steps of the whole schedule").fill("200")
        page.get_by_label("number input for Evaluations at most").fill("1000")
        page.get_by_label("number input for Frames", exact=True).fill("65")
        page.get_by_role("button", name="Morph", exact=True).click()
        page.wait_for_timeout(500)
    first, second = pages
    first.get_by_text("Inverting").first.wait_for(timeout=20_000)
    assert not second.get_by_text("Inverting").count()
    for page in (second, first):  # first the waiting visitor, then the one who is served
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text("Cancelled.").wait_for(timeout=20_000)
    job = client_of(served).submit(api_name="/morph", **arguments(paths, metric="slerp"))
    assert "slerp" in job.result(timeout=10)[0]
    second.get_by_role("button", name="Morph", exact=True).click()
    second.get_by_text("Inverting").first.wait_for(timeout=20_000)
    second.close()
    job = client_of(served).submit(api_name="/morph", **arguments(paths, metric="slerp"))
    assert "slerp" in job.result(timeout=10)[0]
