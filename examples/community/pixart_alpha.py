"""Geodesic morphs of PixArt-alpha as a diffusers community pipeline, see `pipeline.py`."""

from riemannian_diffusion import pipelines


class GeodesicInterpolationPixArtAlpha(pipelines.GeodesicInterpolationPixArtAlphaPipeline):
    """The pipeline of the same name and `Pipeline`, found by its file."""
