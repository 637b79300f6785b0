"""Geodesic morphs of Lumina 2 as a diffusers community pipeline, see `pipeline.py`."""

from riemannian_diffusion import pipelines


class GeodesicInterpolationLumina2(pipelines.GeodesicInterpolationLumina2Pipeline):
    """The pipeline of the same name and `Pipeline`, found by its file."""
