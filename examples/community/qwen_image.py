"""Geodesic morphs of Qwen-Image as a diffusers community pipeline, see `pipeline.py`."""

from riemannian_diffusion import pipelines


class GeodesicInterpolationQwenImage(pipelines.GeodesicInterpolationQwenImagePipeline):
    """The pipeline of the same name and `Pipeline`, found by its file."""
