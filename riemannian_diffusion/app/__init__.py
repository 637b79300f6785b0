"""The page `riemannian-diffusion app`: morphs in the browser, by one model, one at a time.

`build` makes the page of a pipeline. `serve` opens it to this machine alone, or to the network if
its host says so. Install with `pip install 'riemannian-diffusion[app]'`.
"""

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
os.environ.setdefault("GRADIO_RUN_HISTORY", "False")

from riemannian_diffusion.app.page import build, serve  # noqa: E402

__all__ = ["build", "serve"]
