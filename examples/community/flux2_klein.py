"""Geodesic morphs of Flux.2 Klein as a diffusers community pipeline, see `pipeline.py`."""

from riemannian_diffusion import pipelines


class GeodesicInterpolationFlux2Klein(pipelines.GeodesicInterpolationFlux2KleinPipeline):
    """The pipeline of the same name and `Pipeline`, found by its file."""
