"""Geodesic morphs of Flux.2 as a diffusers community pipeline, see `pipeline.py`."""

from riemannian_diffusion import pipelines


class GeodesicInterpolationFlux2(pipelines.GeodesicInterpolationFlux2Pipeline):
    """The pipeline of the same name and `Pipeline`, found by its file."""
