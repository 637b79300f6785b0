"""A model family of your own: unconditional latent diffusion, such as CompVis/ldm-celebahq-256.

    python examples/own_family.py face_a.png face_b.png --output morph.gif

A family says how images become latents and back, what its conditions are, and what its network
predicts. All stages and metrics then work.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers import LDMPipeline
from PIL import Image
from torch import Tensor

from riemannian_diffusion.media import write_frames
from riemannian_diffusion.pipelines.classes import no_texts
from riemannian_diffusion.pipelines.families.unconditional import UnconditionalPrediction
from riemannian_diffusion.pipelines.geodesic_interpolation import GeodesicInterpolationMixin
from riemannian_diffusion.pipelines.prompts import Encoded, TextRequest


class GeodesicInterpolationLDMPipeline(GeodesicInterpolationMixin, LDMPipeline):
    """Morph images into each other along geodesics of an unconditional latent diffusion model."""

    _input_channels = None  # the network takes the channels of the latents, whatever they are

    @property
    def vae_scale_factor(self) -> int:
        """Pixels along each side of a latent."""
        return 2 ** (len(self.vqvae.config.block_out_channels) - 1)

    @property
    def _size_factor(self) -> int:
        return self.vae_scale_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)

    def _encode_texts(self, request: TextRequest) -> Encoded:
        return no_texts(self, request)

    def _prediction(self, options: Mapping[str, Any]) -> UnconditionalPrediction:
        return UnconditionalPrediction(self.unet)  # a pure function of x, timestep, conditions

    @contextmanager
    def _vae_ready(self) -> Iterator[None]:
        yield  # nothing to do before the autoencoder is called

    def _encode_pixels(self, pixels: Tensor) -> Tensor:
        pixels = (2 * pixels - 1).to(self.vqvae.dtype)
        return self.vqvae.encode(pixels).latents.float() * self.vqvae.config.scaling_factor

    def _decode_latents(self, latents: Tensor) -> Tensor:
        latents = (latents / self.vqvae.config.scaling_factor).to(self.vqvae.dtype)
        return self.vqvae.decode(latents).sample.float()


def main(argv: list[str] | None = None) -> None:
    """Morph two images."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs=2, type=Path)
    parser.add_argument("--output", type=Path, default=Path("morph.gif"))
    parser.add_argument("--model", default="CompVis/ldm-celebahq-256")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--max-evals", type=int, default=200)
    args = parser.parse_args(argv)
    pipe = GeodesicInterpolationLDMPipeline.from_pretrained(args.model)
    images = [Image.open(path).convert("RGB") for path in args.images]
    out = pipe(images, num_inference_steps=args.steps, max_evals=args.max_evals)
    write_frames(out.frames, args.output, 12)
    print(out.geodesics[0].message, *out.warnings)


if __name__ == "__main__":
    main()
