"""The pipeline that fits a model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from riemannian_diffusion import pipelines
from riemannian_diffusion.pipelines.folders import check_index, read_index
from riemannian_diffusion.pipelines.hub import reaching_hub
from riemannian_diffusion.pipelines.known import support
from riemannian_diffusion.pipelines.single_file import pipeline_of_file


class AutoGeodesicInterpolationPipeline:
    """Picks the pipeline that fits a model, as diffusers' auto pipelines do.

    Examples:
        >>> from riemannian_diffusion import demo
        >>> from riemannian_diffusion.pipelines import AutoGeodesicInterpolationPipeline
        >>> AutoGeodesicInterpolationPipeline.pipeline_of(demo.model_path()).__name__
        'GeodesicInterpolationPipeline'
    """

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs
    ) -> DiffusionPipeline:
        """Load a model with the pipeline that fits it; arguments as in diffusers.

        Raises:
            ValueError: If none does.
            OSError: If there is no such model, or a part of it is missing, such as a tokenizer or
                weights as safetensors.
        """
        model = pretrained_model_name_or_path
        kind = cls.pipeline_of(model, **kwargs)
        return kind.from_pretrained(model, **kwargs)

    @classmethod
    def from_single_file(
        cls, pretrained_model_link_or_path: str | os.PathLike, **kwargs
    ) -> DiffusionPipeline:
        """Load a model from one file with the pipeline that fits it; arguments as in diffusers.

        Configs and tokenizers of Stable Diffusion 1, 2, XL, 3 and 3.5 ship with this package, so
        that nothing is downloaded. Other families need `config`.

        Args:
            pretrained_model_link_or_path: A .safetensors file in the original layout.
            **kwargs: As in diffusers: `config`, a folder with the diffusers version of a model of
                the same family, which also gives what the file lacks; `dtype`; components.

        Raises:
            ValueError: If no pipeline fits, or the file lacks parts that nothing else gives.
            OSError: If the file is missing or damaged.
        """
        file, config = Path(pretrained_model_link_or_path), kwargs.get("config")
        name = pipeline_of_file(file, config)
        return getattr(pipelines, name).from_single_file(file, **kwargs)

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs) -> DiffusionPipeline:
        """Make the pipeline that fits from the components of a loaded one."""
        name = type(pipeline).__name__
        check_index(name, pipeline.config)
        return cls._for(name, name).from_pipe(pipeline, **kwargs)

    @classmethod
    def pipeline_of(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> Any:
        """The class of the pipeline that fits a model.

        Args:
            pretrained_model_name_or_path: A folder, or a repository on the Hub.
            **kwargs: Those of `from_pretrained`.

        Raises:
            ValueError: If none does.
            OSError: If there is no such model.
        """
        model = pretrained_model_name_or_path
        path = Path(model)
        if path.is_file():
            raise ValueError(f"{model} is a file: load it with `from_single_file`.")
        if path.is_dir():
            config: Any = read_index(path)
        else:
            with reaching_hub(model):
                config = DiffusionPipeline.load_config(model, **kwargs)
        name = config.get("_class_name")
        if isinstance(name, (list, tuple)) and name:  # [file, class]: its code is not run
            name = name[-1]
        if not isinstance(name, str):
            raise ValueError(f"{model} names no pipeline: its model_index.json has no _class_name.")
        return cls._for(name, model)

    @staticmethod
    def _for(name: str, model: Any) -> Any:
        found = support(name)
        if found.pipeline is None:
            raise ValueError(
                f"{model} is a {name}, which cannot be loaded: {found.reason}. The command "
                "`riemannian-diffusion models` lists what can be."
            )
        return getattr(pipelines, found.pipeline)
