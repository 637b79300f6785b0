"""Geodesic morphs of AuraFlow as a diffusers community pipeline, see `pipeline.py`."""

from riemannian_diffusion import pipelines


class GeodesicInterpolationAuraFlow(pipelines.GeodesicInterpolationAuraFlowPipeline):
    """The pipeline of the same name and `Pipeline`, found by its file."""
