"""Geodesic morphs of DiT as a diffusers community pipeline, see `pipeline.py`."""

from riemannian_diffusion import pipelines


class GeodesicInterpolationDiT(pipelines.GeodesicInterpolationDiTPipeline):
    """The pipeline of the same name and `Pipeline`, found by its file."""
