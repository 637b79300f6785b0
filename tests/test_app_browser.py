"""The page as a visitor sees it, in Chromium at three widths, light and dark."""

from __future__ import annotations

import shutil

import PIL.Image
import pytest
from models import to_pil

pytest.importorskip("gradio")
pytest.importorskip("matplotlib")

from pages import arguments, chromium, client_of, serving, texts_of  # noqa: E402

from riemannian_diffusion import demo  # noqa: E402
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline  # noqa: E402

pytestmark = pytest.mark.slow

SIZES = ((1280, 800), (768, 1024), (390, 844))
BOX = (
    "node => { const b = node.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom] }"
)
# cells whose words are broken: a word that is alone in a line is as wide as its cell at least
BROKEN = """() => [...document.querySelectorAll("#numbers th, #numbers td")].filter(cell => {
    const range = document.createRange();
    const walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
    for (let node; (node = walker.nextNode()); ) {
        for (const found of node.data.matchAll(/\\S+/g)) {
            range.setStart(node, found.index);
            range.setEnd(node, found.index + found[0].length);
            if (range.getClientRects().length > 1) return true;
        }
    }
    return false;
}).map(cell => cell.textContent)"""


@pytest.fixture
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def shipped():
    """The address of the page of the shipped model."""
    pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
    with serving(pipe) as (url, _):
        yield url


def fill(page, label, value):
    page.get_by_label(f"number input for {label}", exact=True).fill(str(value))


def ask_for_little(page, num_frames=3, steps=6, max_evals=3):
    """Set the inputs so that a morph takes a few seconds."""
    fill(page, "Frames", num_frames)
    for section, label, value in (
        ("Path", "Evaluations at most", max_evals),
        ("Sampling and guidance", "Steps of the whole schedule", steps),
    ):
        page.get_by_text(section, exact=True).click()
        fill(page, label, value)
        page.get_by_text(section, exact=True).click()


def working(page):
    """The phase of the work that the page shows."""
    status = page.locator("#status")
    return status.get_by_text("Inverting").or_(status.get_by_text("Solving")).first


def check_in_sight(page, *nodes):
    """Nodes lie within the window, and none covers another."""
    size = page.viewport_size
    boxes = [node.evaluate(BOX) for node in nodes]
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= size["width"] and 0 <= top < bottom <= size["height"]
    for i, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[:i]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top


def check_no_sideways_scroll(page):
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= page.viewport_size["width"]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES, ids=["wide", "middle", "phone"])
def test_what_a_visitor_sees(shipped, browser, size, theme):
    window = {"width": size[0], "height": size[1]}
    page = browser.new_context(viewport=window, color_scheme=theme).new_page()
    page.goto(shipped)
    buttons = [page.get_by_role("button", name=n, exact=True) for n in ("Morph", "Cancel")]
    status = page.locator("#status")
    status.get_by_text("Ready").wait_for()
    check_in_sight(page, *buttons, status)
    assert "renders of five solids" in page.locator("#about").inner_text()
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background.strip("rgba()").split(",")[:3])) < 384) == (theme == "dark")
    bar = page.locator("#bar").evaluate("node => getComputedStyle(node).backgroundColor")
    assert bar == background

    ask_for_little(page)
    buttons[0].click()
    working(page).wait_for()
    check_in_sight(page, *buttons, status)
    level = status.locator(".progress-level").or_(status.get_by_text("Done"))
    level.first.wait_for()
    check_in_sight(page, buttons[0], level.first)
    status.get_by_text("Done:").wait_for(timeout=60_000)
    assert "stays on the data" in page.locator("#words").inner_text()
    check_no_sideways_scroll(page)

    page.get_by_role("tab", name="Numbers").click()
    table = page.locator("#numbers table")
    table.wait_for()
    table.scroll_into_view_if_needed()
    assert not page.evaluate(BROKEN)
    assert table.get_by_role("columnheader", name="slerp").count() == 1
    for tab in ("Step", "Files", "All frames"):
        page.get_by_role("tab", name=tab).click()
        check_no_sideways_scroll(page)
    check_in_sight(page, *buttons, status)


def test_the_whole_flow(shipped, browser, tmp_path):
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    strangers = []
    local = (shipped, "data:", "blob:")
    page.on("request", lambda r: None if r.url.startswith(local) else strangers.append(r.url))
    page.goto(shipped)
    morph = page.get_by_role("button", name="Morph", exact=True)
    done = page.locator("#status").get_by_text("Done:")
    ask_for_little(page)

    # an example, and its result
    page.get_by_text("A red cube becomes a blue cone").click()
    page.wait_for_function("document.querySelector('textarea').value.includes('blue cone')")
    morph.click()
    page.locator("#results video").nth(1).wait_for(timeout=60_000)
    done.wait_for(timeout=60_000)
    for video in page.locator("#results video").all():
        video.evaluate("v => v.readyState >= 2 || new Promise(r => v.onloadeddata = r)")
        assert video.evaluate("v => v.videoWidth") == 64
    words = page.locator("#words").inner_text()
    assert "tangent_normal is" in words and "slerp is" in words and "again" not in words
    strip = page.locator("#frames img")
    assert strip.evaluate("image => image.naturalWidth") == 92 + 3 * 64

    # step through the frames
    page.get_by_role("tab", name="Step").click()
    steps = page.locator("#steps")
    steps.locator("caption", has_text="frame 1 of 3").wait_for()
    steps.locator(".preview").press("ArrowRight")
    steps.locator("caption", has_text="frame 2 of 3").wait_for()

    # files
    page.get_by_role("tab", name="Files").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="KB").nth(1).click()
    download.value.save_as(tmp_path / "morph.gif")
    with PIL.Image.open(tmp_path / "morph.gif") as animation:
        assert animation.format == "GIF" and animation.n_frames == 3

    # keep it, and solve with another metric from the same inversion
    page.get_by_role("button", name="Keep this result").click()
    page.get_by_text("Kept results", exact=True).wait_for()
    assert page.locator("#results video").count() == 4
    page.get_by_label("Compare with").click()
    page.get_by_role("option", name="lerp", exact=True).click()
    morph.click()
    page.get_by_text("not inverted again").wait_for(timeout=60_000)
    done.wait_for(timeout=60_000)
    assert "lerp is" in page.locator("#words").inner_text()
    assert page.locator("#results video").count() == 4
    page.get_by_role("button", name="Remove kept results").click()
    page.get_by_text("Kept results", exact=True).wait_for(state="detached")

    # uploads that are refused in words
    (tmp_path / "not_a_picture.png").write_text("no image")
    shutil.copy(demo.endpoint_paths()[0], tmp_path / "torus.png")
    page.get_by_label("Clear").first.click()
    files = [tmp_path / name for name in ("not_a_picture.png", "torus.png")]
    page.locator("input[type=file]").first.set_input_files(files)
    page.get_by_text("not_a_picture.png cannot be read as an image").wait_for()
    page.wait_for_function("document.querySelectorAll('#images img').length == 1")
    morph.click()
    page.get_by_text("A morph needs at least 2 images, but got 1").wait_for(timeout=20_000)
    (tmp_path / "large.png").write_bytes(bytes(31 * 2**20))
    page.get_by_label("Clear").first.click()
    page.locator("input[type=file]").first.set_input_files(tmp_path / "large.png")
    page.get_by_text("exceed").first.wait_for(timeout=30_000)
    assert not strangers


@pytest.fixture
def served(tiny_pipe, monkeypatch):
    monkeypatch.setenv("GRADIO_HEARTBEAT_INTERVAL", "0.5")
    with serving(tiny_pipe) as (url, _):
        yield url


def test_browsers_that_cancel_or_leave_make_room(served, browser, keyframes, tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(len(keyframes))]
    for path, picture in zip(paths, to_pil(keyframes), strict=True):
        picture.save(path)
    pages = [browser.new_page() for _ in range(2)]
    for page in pages:
        page.goto(served)
        ask_for_little(page, num_frames=65, steps=200, max_evals=1000)
        page.get_by_role("button", name="Morph", exact=True).click()
        page.wait_for_timeout(500)
    first, second = pages
    working(first).wait_for(timeout=20_000)
    assert not working(second).count()
    for page in (second, first):  # first the waiting visitor, then the one who is served
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text("Cancelled.").wait_for(timeout=20_000)
    job = client_of(served).submit(api_name="/morph", **arguments(paths, metric="slerp"))
    assert "slerp" in texts_of(job.result(timeout=20))
    second.get_by_role("button", name="Morph", exact=True).click()
    working(second).wait_for(timeout=20_000)
    second.close()
    job = client_of(served).submit(api_name="/morph", **arguments(paths, metric="slerp"))
    assert "slerp" in texts_of(job.result(timeout=20))


def test_a_browser_gives_the_password_once(tiny_pipe, browser):
    with serving(tiny_pipe, auth=("ann", "secret")) as (url, _):
        with pytest.raises(Exception, match="ERR_INVALID_AUTH_CREDENTIALS"):
            browser.new_page().goto(url)
        known = {"username": "ann", "password": "secret"}
        page = browser.new_context(http_credentials=known).new_page()
        page.goto(url)
        page.get_by_role("button", name="Morph", exact=True).click()
        page.locator("#status").get_by_text("Done").wait_for(timeout=60_000)
