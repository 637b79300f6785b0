"""Geodesic morphs of Sana as a diffusers community pipeline, see `pipeline.py`."""

from riemannian_diffusion import pipelines


class GeodesicInterpolationSana(pipelines.GeodesicInterpolationSanaPipeline):
    """The pipeline of the same name and `Pipeline`, found by its file."""
