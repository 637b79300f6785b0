"""Geodesic morphs of Stable Diffusion 1 and 2 as a diffusers community pipeline.

    DiffusionPipeline.from_pretrained(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        custom_pipeline="examples/community/pipeline.py",  # or a copy of it, or its folder
        trust_remote_code=True,
    )

Or put this file into the model's own folder, with `"_class_name": ["pipeline",
"GeodesicInterpolation"]` in its `model_index.json`. The library must be installed. The files
beside this one are the same for other models.
"""

from riemannian_diffusion import pipelines


class GeodesicInterpolation(pipelines.GeodesicInterpolationPipeline):
    """`riemannian_diffusion.pipelines.GeodesicInterpolationPipeline`, found by its file."""
