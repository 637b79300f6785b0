"""Geodesic morphs of Stable Diffusion XL as a diffusers community pipeline, see `pipeline.py`."""

from riemannian_diffusion import pipelines


class GeodesicInterpolationXL(pipelines.GeodesicInterpolationXLPipeline):
    """The pipeline of the same name and `Pipeline`, found by its file."""
