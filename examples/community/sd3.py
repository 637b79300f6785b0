"""Geodesic morphs of Stable Diffusion 3 as a diffusers community pipeline, see `pipeline.py`."""

from riemannian_diffusion import pipelines


class GeodesicInterpolationSD3(pipelines.GeodesicInterpolationSD3Pipeline):
    """The pipeline of the same name and `Pipeline`, found by its file."""
