"""Geodesic morphs of Chroma as a diffusers community pipeline, see `pipeline.py`."""

from riemannian_diffusion import pipelines


class GeodesicInterpolationChroma(pipelines.GeodesicInterpolationChromaPipeline):
    """The pipeline of the same name and `Pipeline`, found by its file."""
