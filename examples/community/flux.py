"""Geodesic morphs of Flux.1 as a diffusers community pipeline, see `pipeline.py`."""

from riemannian_diffusion import pipelines


class GeodesicInterpolationFlux(pipelines.GeodesicInterpolationFluxPipeline):
    """The pipeline of the same name and `Pipeline`, found by its file."""
