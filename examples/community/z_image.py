"""Geodesic morphs of Z-Image as a diffusers community pipeline, see `pipeline.py`."""

from riemannian_diffusion import pipelines


class GeodesicInterpolationZImage(pipelines.GeodesicInterpolationZImagePipeline):
    """The pipeline of the same name and `Pipeline`, found by its file."""
