"""The page for tests: served, asked by clients and seen by a browser."""

from __future__ import annotations

import contextlib
import shutil
import zipfile

import httpx
import PIL.Image
import pytest
from gradio_client import Client, handle_file
from models import FAST

from riemannian_diffusion.app import build
from riemannian_diffusion.app.serving import launch, uploads_folder

BROWSERS = ("/usr/lib/chromium/chromium", "chromium", "google-chrome")


@contextlib.contextmanager
def serving(models, limits=None, **options):
    """The address of a page, and the folder of its uploads, while it is served."""
    with uploads_folder() as folder:
        page = build(models, limits)
        _, url, _ = launch(page, folder, limits=limits, prevent_thread_lock=True, **options)
        try:
            yield url, folder
        finally:
            page.close()


def client_of(url, **options):
    return Client(url, verbose=False, **options)


def arguments(paths, **more):
    """Arguments of /morph, with `FAST` options."""
    images = [{"image": handle_file(path), "caption": None} for path in paths]
    fast = FAST | {"steps": FAST["num_inference_steps"], "other": "none"}
    del fast["num_inference_steps"]
    return {"images": images, "prompts": ""} | fast | more


def texts_of(result):
    """All text of an answer of /morph."""
    return "\n".join(part for part in result if isinstance(part, str))


def files_of(result):
    """The paths of the files to download."""
    return next(part for part in result if isinstance(part, list) and str(part[0]).endswith("mp4"))


def frames_in(result):
    packed = next(path for path in files_of(result) if path.endswith(".zip"))
    with zipfile.ZipFile(packed) as archive:
        return [PIL.Image.open(archive.open(name)).tobytes() for name in archive.namelist()]


def upload(url, *files, **options):
    """Upload (name, bytes) as the page does; returns the server's answer."""
    parts = [("files", (name, data)) for name, data in files]
    return httpx.post(f"{url}gradio_api/upload", files=parts, timeout=30, **options)


@contextlib.contextmanager
def chromium():
    """A browser, if there is one."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = [path for path in map(shutil.which, BROWSERS) if path is not None]
    if not found:
        pytest.skip("there is no Chromium")
    with api.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=found[0], args=["--no-sandbox"])
        yield opened
        opened.close()
