"""The page while it is served: to programs, to strangers, and to a browser."""

from __future__ import annotations

import base64
import io
import json
import socket
import tempfile
import threading
import time
import urllib.parse
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from models import FAST, make, to_pil

gr = pytest.importorskip("gradio")
pytest.importorskip("matplotlib")

import httpx  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402
from pages import (  # noqa: E402
    arguments,
    client_of,
    files_of,
    frames_in,
    serving,
    texts_of,
    upload,
)

from riemannian_diffusion import demo  # noqa: E402
from riemannian_diffusion.adaptation import adapt  # noqa: E402
from riemannian_diffusion.app import Limits, Models, Offer, build  # noqa: E402

LONG = 900  # number of steps that takes much longer than any of these tests


@pytest.fixture
def pictures(keyframes):
    return to_pil(keyframes)


@pytest.fixture
def paths(pictures, tmp_path):
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
    return [str(tmp_path / f"{i}.png") for i in range(len(pictures))]


@pytest.fixture(autouse=True)
def short_heartbeat(monkeypatch):
    # interval in which the server notices that a client has left
    monkeypatch.setenv("GRADIO_HEARTBEAT_INTERVAL", "0.5")


@pytest.fixture
def served(tiny_pipe):
    """The address of the page of the tiny pipeline."""
    with serving(tiny_pipe) as (url, _):
        yield url


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
    assert "**tangent_normal** is" in texts_of(result) and "slerp, gap 2 |" in texts_of(result)
    names = [path.rpartition("/")[2] for path in files_of(result)]
    assert names == [
        f"{m}{end}" for m in ("tangent_normal", "slerp") for end in (".mp4", ".gif", "_frames.zip")
    ]
    assert not list((tmp_path / "temporary").glob(f"{tempfile.gettempprefix()}*"))
    assert not [path for path in (tmp_path / "temporary").rglob("*") if path.is_file()]


def test_the_options_of_the_command_line(served, paths, tiny_pipe, pictures):
    options = {"at_frames": "0, 2, 6", "retime": "rmse", "extrapolate": 0.5, "start": ["roadmap"]}
    options |= {"guidance": 2, "paste": True, "metric": "stein", "ping_pong": True}
    client = client_of(served)
    result = client.predict(api_name="/morph", **arguments(paths, **options))
    generator = torch.Generator().manual_seed(0)
    steps = {name: FAST[name] for name in ("num_inference_steps", "strength")}
    keys = tiny_pipe.invert(pictures, guidance_scale=2, **steps)
    path = tiny_pipe.solve(
        *(keys, "stein"),
        num_frames=[3, 5],
        init="roadmap",
        max_evals=FAST["max_evals"],
        generator=generator,
    )
    path = tiny_pipe.extend(tiny_pipe.retime(tiny_pipe.sample(path), "rmse"), 0.5)
    expected = tiny_pipe.render(path, paste_endpoints=True).frames
    assert frames_in(result) == [frame.tobytes() for frame in expected]
    assert "not inverted again" not in texts_of(result)
    again = client.predict(api_name="/morph", **arguments(paths, guidance=2, metric="slerp"))
    assert "not inverted again" in texts_of(again)


def test_another_image_is_changed_by_a_fitted_model(served, paths, tiny_pipe, pictures):
    """As `--analogy` and `--adapt` of the command line, by two metrics that are sampled as one."""
    (third,) = arguments(paths[2:])["images"]
    options = {"analogy": [third], "adapt": "lora", "prompts": "a\nb\nc", "max_evals": 2}
    mine = arguments(paths[:2], metric="lerp", other="slerp", **options)
    result = client_of(served).predict(api_name="/morph", **mine)
    adaptation = adapt(tiny_pipe, pictures, ["a", "b", "c"], embedding_steps=0)
    conditions = tiny_pipe.condition(["a", "b", "c"], adaptation=adaptation)
    steps = {name: FAST[name] for name in ("num_inference_steps", "strength")}
    keys = tiny_pipe.invert(pictures[:2], conditions=conditions.at_knots([0, 1]), **steps)
    path = tiny_pipe.sample(tiny_pipe.solve(keys, "lerp", num_frames=FAST["num_frames"]))
    theirs = replace(conditions.at_knots([2]), loras=keys.levels.conditions.loras)
    path = tiny_pipe.transport(path, pictures[2], conditions=theirs, max_evals=2)
    found, expected = frames_in(result), tiny_pipe.render(path).frames
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        one = np.frombuffer(one, np.uint8).astype(int)
        assert np.abs(one - np.asarray(other).ravel()).max() <= 1
    assert "lerp, to image 2 | lerp, to the other image |" in texts_of(result)


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
    assert "slerp" in texts_of(waiting.result(timeout=40))


def test_bad_input_gives_a_message_and_the_page_still_works(served, paths, tmp_path):
    client = client_of(served)
    (tmp_path / "broken.png").write_text("no image")
    cases = [
        (arguments(paths[:1]), "A morph needs at least 2 images, but got 1"),
        (arguments([]), "A morph needs at least 2 images, but got 0"),
        (arguments(paths * 5), "A morph takes at most 12 images here, but got 15"),
        (arguments(paths, prompts="a\nb"), "one for each, but there are 2 for 3 keyframes"),
        (arguments([paths[0], str(tmp_path / "broken.png")]), "broken.png cannot be read"),
        (arguments(paths, width=15), "must be multiples of 2"),
        (arguments(paths, width=9000), "Width and Height must be from 1 to 64"),
        (arguments(paths, seed=None), "Seed must be a finite number, but got None"),
        (arguments(paths, at_frames="1, 2, 3"), "Images at frames must be whole numbers that rise"),
        (
            arguments(paths, metric="nao", space="clean"),
            "“Metric” nao needs “Space” noise, but got 'clean'",
        ),
        (arguments(paths, analogy=arguments(paths[:1])["images"]), "two images above and one here"),
        (
            arguments(paths[:2], analogy=arguments(paths)["images"]),
            "“Change another image instead” needs two images above and one here, but got 2 and 3",
        ),
        (
            arguments(paths[:2], analogy=arguments(paths[2:])["images"], extrapolate=0.5),
            "“Go on beyond the last image” exclude each other",
        ),
        (
            arguments(paths[:2], analogy=arguments(paths[2:])["images"], prompts="a\nb"),
            "“Prompts” must be one line, or one for each of 3 images, but got 2",
        ),
        (arguments(paths, steps=1), "leaves no step"),
        (arguments(paths, model="/etc"), "Model must be one of"),
        (arguments(paths, num_frames=10**9), "Frames must be from 2 to 65, but got 1000000000"),
        (arguments(paths, max_evals=-5), "Evaluations at most must be from 1 to 1000, but got -5"),
        (arguments(paths, adapt="evil"), "Fit the model to the images first must be one of no"),
    ]
    for given, message in cases:
        with pytest.raises(AppError) as error:
            client.predict(api_name="/morph", **given)
        assert message in str(error.value)
    good = client.predict(api_name="/morph", **arguments(paths, metric="slerp"))
    assert len(frames_in(good)) == 7


WRONG = [None, [], ["x"], "", "evil", -1, 10**400, float("nan"), True, {"a": 1}, "9" * 5000]


def test_a_value_of_the_wrong_kind_is_refused_in_words(tiny_pipe):
    """Whatever gradio's components would do with it; nothing else is raised."""
    page = build(tiny_pipe)
    (morph,) = (one for one in page.fns.values() if one.api_name == "morph")
    good = [block.value for block in morph.inputs]
    page.validate_inputs(morph, good)
    refused = 0
    for i, block in enumerate(morph.inputs):
        for value in WRONG:
            try:
                page.validate_inputs(morph, [*good[:i], value, *good[i + 1 :]])
            except gr.Error as error:
                assert error.message.startswith(f"{block.label} must be ")
                assert len(error.message) < 300 and not error.print_exception
                refused += 1
            else:
                taken = json.dumps(value)
                assert taken in TAKEN[type(block).__name__], (block.label, taken)
    assert refused > 150


TAKEN = {  # values of `WRONG` that a kind of input takes
    "Textbox": {"null", '""', '"evil"', json.dumps("9" * 5000)},
    "Checkbox": {"true"},
    "CheckboxGroup": {"[]"},
    "Gallery": {"null", "[]"},
    "Number": {"-1"},  # a width, which the model's own size limits
    "Slider": set(),
    "Dropdown": set(),
    "Radio": set(),
}


def test_a_missing_negative_prompt_is_an_empty_one(served, paths):
    client = client_of(served)
    given = arguments(paths, metric="slerp", negative=None, at_frames="")
    assert files_of(client.predict(api_name="/morph", **given))


def test_visitors_choose_among_models(paths):
    made = []

    def load(seed):
        made.append(seed)
        torch.manual_seed(seed)
        return make("sd")

    models = Models([Offer(f"model {seed}", lambda seed=seed: load(seed)) for seed in (1, 2)])
    with serving(models) as (url, _):
        client, frames = client_of(url), []
        for name in ("model 1", "model 2", "model 2", "model 1"):
            mine = arguments(paths, model=name, metric="slerp", width=0, height=0)
            frames.append(frames_in(client.predict(api_name="/morph", **mine)))
    assert made == [1, 2, 1] and frames[0] == frames[3] and frames[1] == frames[2]


def test_page_contacts_no_other_machine(served):
    assert httpx.get(f"{served}config").json()["analytics_enabled"] is False


def picture(size=16, kind="PNG"):
    file = io.BytesIO()
    PIL.Image.effect_noise((size, size), 50).convert("RGB").save(file, kind)
    return file.getvalue()


def bomb(side=30_000):
    """A PNG of many pixels in few bytes."""

    def chunk(name, data):
        code = zlib.crc32(name + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + name + data + code

    head = side.to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + 3 * side)) for _ in range(50)) + packer.flush()
    parts = chunk(b"IHDR", head), chunk(b"IDAT", rows), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def raw(url, text, *, then=b""):
    """What a server answers to bytes on its socket, once the client has sent all it has."""
    address = urllib.parse.urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as line:
        line.sendall(text.encode() + then)
        line.shutdown(socket.SHUT_WR)
        return line.recv(200).decode(errors="replace")


def test_hostile_requests(tiny_pipe, paths):
    limits = Limits(file_bytes=200_000, upload_bytes=500_000, folder_files=40)
    auth, good = ("ann", "secret"), {"auth": ("ann", "secret")}
    names = ["morphs.example"]
    with serving(tiny_pipe, limits, auth=auth, names=names) as (url, folder):
        own = url.rstrip("/")
        host = urllib.parse.urlsplit(url).netloc

        def get(path, **options):
            return httpx.get(own + path, **good | options).status_code

        def post(path, **options):
            return httpx.post(own + path, **good | options)

        # who asks
        assert get("/") == 200
        for wrong in (None, ("ann", "wrong"), ("bob", "secret"), ("ann", ""), ("", "")):
            assert get("/", auth=wrong) == 401 and get("/config", auth=wrong) == 401
        for header in ("Basic !!!", "Bearer YW5uOnNlY3JldA==", "Basic", "Basic YW5u"):
            answer = httpx.get(url, headers={"Authorization": header})
            assert answer.status_code == 401 and "name and a password" in answer.text
        assert post("/gradio_api/queue/join", auth=None, json={}).status_code == 401
        assert upload(url, ("a.png", picture())).status_code == 401
        assert not list(folder.rglob("a.png"))

        # from where
        for name in ("evil.example", "morphs.example.evil.example", "", "a@b", "localhost.evil"):
            assert get("/", headers={"Host": name}) in (400, 421)
        for name in ("morphs.example", "localhost:1", "192.168.1.4", "[::1]:7860"):
            assert get("/", headers={"Host": name}) == 200
        for origin in ("http://evil.example", "null", f"http://{host}.evil", "file://", "x"):
            answer = post("/gradio_api/queue/join", headers={"Origin": origin}, json={})
            assert answer.status_code == 403 and "other pages" in answer.text
            assert upload(url, ("a.png", picture()), headers={"Origin": origin}, **good).is_error
        assert get("/", headers={"Origin": f"http://{host}"}) == 200
        assert get("/", headers={"Origin": "https://morphs.example"}) == 200
        foreign = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
        assert get("/config", headers=foreign) == 403
        assert get("/", headers=foreign | {"Sec-Fetch-Mode": "navigate"}) == 200  # a link to it
        assert httpx.get(url, **good).headers["x-frame-options"] == "SAMEORIGIN"

        # files of the server
        secret = Path(demo.model_path(), "model_index.json")
        for path in (
            *("/etc/passwd", str(secret), "../../../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd"),
            *(f"{folder}/../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "http://127.0.0.1:1/x"),
        ):
            assert get(f"/gradio_api/file={path}", follow_redirects=False) in (400, 403, 404)
            assert get(f"/static/{path}") in (400, 403, 404, 405)
        assert get("/gradio_api/proxy=http://127.0.0.1:1/") == 404
        client = client_of(url, auth=None, headers={"Authorization": basic(auth)})
        for path in (str(secret), "http://127.0.0.1:1/a.png", "file:///etc/passwd"):
            value = [{"image": {"path": path, "meta": {"_type": "gradio.FileData"}}}]
            with pytest.raises(Exception) as refused:  # noqa: B017  of gradio or of httpx
                client.predict(api_name="/morph", **arguments([]) | {"images": value})
            assert "_class_name" not in str(refused.value)

        # too much, and cut short
        assert upload(url, ("big.png", bytes(300_000)), **good).status_code == 413
        answer = upload(url, *[(f"{i}.png", bytes(150_000)) for i in range(5)], **good)
        assert answer.status_code == 413 and "Upload fewer or smaller ones" in answer.text
        assert post("/gradio_api/queue/join", content=bytes(2**21)).status_code == 413
        head = f"Host: {host}\r\nAuthorization: {basic(auth)}\r\n"
        kind = "Content-Type: multipart/form-data; boundary=x\r\n"
        start = f"POST /gradio_api/upload HTTP/1.1\r\n{head}{kind}"
        part = '--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        assert " 413 " in raw(url, f"{start}Content-Length: 99999999999\r\n\r\n")
        assert " 400 " in raw(url, f"{start}Content-Length: -5\r\n\r\n")
        chunks = b"".join(b"10000\r\n" + bytes(65536) + b"\r\n" for _ in range(9))
        first = f"{start}Transfer-Encoding: chunked\r\n\r\n{len(part):x}\r\n{part}\r\n"
        assert " 413 " in raw(url, first, then=chunks)
        raw(url, f"{start}Content-Length: 400000\r\n\r\n{part}abc")  # it ends in the middle

        # no JSON, no images, HTML in names
        for body in (b"{", b"\xff\xfe", b"[" * 100_000, b""):
            answer = post(
                "/gradio_api/queue/join",
                content=body,
                headers={"Content-Type": "application/json"},
            )
            assert 400 <= answer.status_code < 500
        name = "<img src=x onerror=alert(1)>.png"
        for data in (b"no image", picture()[:100], bomb(), b"GIF89a", b""):
            answer = upload(url, (name, data), **good)
            assert answer.status_code == 200
            value = [{"image": {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}}}]
            with pytest.raises(AppError) as refused:
                client.predict(api_name="/morph", **arguments([]) | {"images": value * 2})
            assert "<img" not in str(refused.value) and str(folder) not in str(refused.value)

        # the folder is full in the end, and the page still works
        for i in range(60):
            answer = upload(url, (f"{i}.png", picture()), **good)
            if answer.status_code != 200:
                break
        assert answer.status_code == 507 and "try again later" in answer.text
        assert get("/") == 200 and sum(one.is_file() for one in folder.rglob("*")) < 80
    assert not folder.exists()


def test_an_address_uploads_no_more_than_its_share(tiny_pipe):
    limits = Limits(address_uploads=3, address_bytes=10_000)
    with serving(tiny_pipe, limits) as (url, folder):
        assert [upload(url, ("a.png", picture())).status_code for _ in range(4)] == [200] * 3 + [
            429
        ]
        answer = upload(url, ("a.png", picture()))
        assert "From your address, as much has been uploaded" in answer.text
        proxied = {"headers": {"X-Forwarded-For": "10.0.0.9"}}  # uvicorn trusts this machine
        assert upload(url, ("a.png", picture()), **proxied).status_code == 200
        assert upload(url, ("a.png", bytes(20_000)), **proxied).status_code == 429
        assert httpx.get(url).status_code == 200
        assert len([*folder.rglob("a.png")]) <= 4


def basic(auth):
    return f"Basic {base64.b64encode(':'.join(auth).encode()).decode()}"


@pytest.mark.slow
def test_two_hundred_requests(served, paths):
    clients = [client_of(served) for _ in range(8)]

    def visit(i):
        mine = arguments(paths[:2], metric="slerp", seed=i, num_frames=2 + i % 3, steps=2)
        return i, clients[i % 8].predict(api_name="/morph", **mine | {"strength": 1.0})

    with ThreadPoolExecutor(8) as pool:
        for i, result in pool.map(visit, range(200)):
            assert len(frames_in(result)) == 2 + i % 3
    assert threading.active_count() < 200 and httpx.get(served).status_code == 200
