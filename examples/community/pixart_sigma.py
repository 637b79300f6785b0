"""Geodesic morphs of PixArt-Sigma as a diffusers community pipeline, see `pipeline.py`."""

from riemannian_diffusion import pipelines


class GeodesicInterpolationPixArtSigma(pipelines.GeodesicInterpolationPixArtSigmaPipeline):
    """The pipeline of the same name and `Pipeline`, found by its file."""
