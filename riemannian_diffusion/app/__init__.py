"""The page `riemannian-diffusion app`: morphs in the browser, by models that visitors share.

`build` makes the page of models, and `serve` serves it to this machine alone, or to the network if
its host says so. Install with `pip install 'riemannian-diffusion[app]'`.
"""

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
os.environ.setdefault("GRADIO_RUN_HISTORY", "False")

from riemannian_diffusion.app.guard import Limits  # noqa: E402
from riemannian_diffusion.app.models import Models, Offer  # noqa: E402
from riemannian_diffusion.app.page import build  # noqa: E402
from riemannian_diffusion.app.serving import serve  # noqa: E402

__all__ = ["Limits", "Models", "Offer", "build", "serve"]
