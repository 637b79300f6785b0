"""Geodesic morphs of models of pixels as a diffusers community pipeline, see `pipeline.py`."""

from riemannian_diffusion import pipelines


class GeodesicInterpolationUnconditional(pipelines.GeodesicInterpolationUnconditionalPipeline):
    """The pipeline of the same name and `Pipeline`, found by its file."""
