"""Fit prompt embeddings and LoRAs to single images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from riemannian_diffusion.adaptation.mixing import original
from riemannian_diffusion.score.weights import Layers

LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
_ADAPTER = "riemannian_diffusion"

Callback = Callable[[int, int, float], None]


def fit_embeddings(
    model: nn.Module,
    scheduler,
    latents: Tensor,
    embeddings: Tensor,
    *,
    num_steps: int = 50,
    lr: float = 3e-2,
    batch_size: int = 4,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Fit a prompt embedding to each image without changing the model (arXiv 2311.06792).

    Args:
        model: The denoiser, called as `model(x, t, encoder_hidden_states=..., return_dict=False)`.
        scheduler: The scheduler, which gives `alphas_cumprod` and the prediction type. It is not
            changed.
        latents: Clean latents of the P images, `(P, C, h, w)`.
        embeddings: First embeddings, `(P, L, C)`, or `(1, L, C)` for all images.
        num_steps: Steps of Adam for each image.
        lr: Adam's learning rate.
        batch_size: Number of noises per step.
        generator: Source of the seed of all random numbers; None takes the global generator.
        callback: A function that is called as `callback(image, step, loss)` after every step.

    Returns:
        Embeddings `(P, L, C)` on the device of the latents, in float32 for any dtype of the model.

    Raises:
        ValueError: If shapes disagree, an argument is out of range, or the loss is not finite.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import demo, fit_embeddings
        >>> from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline
        >>> pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
        >>> latents = torch.zeros(2, 4, 16, 16)  # of two images
        >>> start = torch.zeros(1, 7, pipe.unet.config.cross_attention_dim)
        >>> fitted = fit_embeddings(pipe.unet, pipe.scheduler, latents, start, num_steps=1)
        >>> fitted.shape == (2, 7, start.shape[2])
        True
    """
    embeddings = _per_image(embeddings, latents)
    seed, found = _seed(generator), []
    with Layers(model).frozen(), torch.enable_grad():
        for i, start in enumerate(embeddings):
            embedding = start.detach().clone()[None].requires_grad_()
            losses = _losses(model, scheduler, latents[i], embedding, batch_size, seed)
            _descend([embedding], losses, num_steps, lr, i, callback)
            found.append(embedding.detach())
    return torch.cat(found)


def fit_lora(
    unet: nn.Module,
    scheduler,
    latents: Tensor,
    embeddings: Tensor,
    *,
    rank: int = 16,
    num_steps: int = 100,
    lr: float = 1e-3,
    batch_size: int = 4,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> list[dict[str, Tensor]]:
    """Fit a LoRA of the attention projections to each image with peft (arXiv 2312.07409).

    Args:
        unet: A diffusers network. On return, also after an exception, it is restored.
        scheduler: See `fit_embeddings`.
        latents: Clean latents of the P images, `(P, C, h, w)`.
        embeddings: Prompt embeddings, `(P, L, C)`, or `(1, L, C)` for all images.
        rank: Rank of the change of each projection, at least 1.
        num_steps: Steps of Adam for each image; the paper uses 200.
        lr: Adam's learning rate; the paper uses 2e-4.
        batch_size: Number of noises per step.
        generator: See `fit_embeddings`.
        callback: See `fit_embeddings`.

    Returns:
        One LoRA for each image, with the names of `peft.get_peft_model_state_dict`:
        `<module>.lora_A.weight` `(rank, in)` and `<module>.lora_B.weight` `(out, rank)`, float32 on
        the CPU. The scale is 1 (`lora_alpha` equals `rank`). To use a LoRA in diffusers, call
        `unet.load_lora_adapter(lora, prefix=None)`.

    Raises:
        ImportError: If peft is not installed.
        ValueError: As in `fit_embeddings`, or if the network already has adapters.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import demo, fit_lora
        >>> from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline
        >>> pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
        >>> latents = torch.zeros(2, 4, 16, 16)  # of two images
        >>> start = torch.zeros(1, 7, pipe.unet.config.cross_attention_dim)
        >>> loras = fit_lora(pipe.unet, pipe.scheduler, latents, start, num_steps=1)
        >>> len(loras)
        2
    """
    try:
        import peft
    except ImportError as error:
        raise ImportError(
            "fit_lora needs peft: pip install 'riemannian-diffusion[adapt]', or fit embeddings "
            "alone (`lora_steps=0`)."
        ) from error
    if rank < 1:
        raise ValueError(f"`rank` must be at least 1, but got {rank}.")
    adapters: Any = getattr(unet, "peft_config", None)
    if adapters:
        raise ValueError(
            f"The network has the adapters {list(adapters)} already. Merge them first: "
            "pipe.fuse_lora(), then pipe.unload_lora_weights()."
        )
    unet, embeddings = original(unet), _per_image(embeddings, latents)
    seed, found = _seed(generator), []
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LORA_TARGETS))
    with torch.enable_grad():
        for i, embedding in enumerate(embeddings):
            with _adapted(unet, config, seed) as parameters:
                losses = _losses(unet, scheduler, latents[i], embedding[None], batch_size, seed)
                _descend(parameters, losses, num_steps, lr, i, callback)
                lora = peft.get_peft_model_state_dict(unet, adapter_name=_ADAPTER)
                found.append({k: v.detach().float().cpu().clone() for k, v in lora.items()})
    return found


def denoising_losses(
    model: nn.Module,
    scheduler,
    latents: Tensor,
    embeddings: Tensor,
    timesteps: Tensor,
    noise: Tensor,
) -> Tensor:
    """Compute the mean squared errors of a model's predictions at noisy points, `(n,)`.

    Args:
        model: See `fit_embeddings`.
        scheduler: See `fit_embeddings`.
        latents: Clean latents `(n, C, h, w)`, or one latent for all noises.
        embeddings: Prompt embeddings `(n, L, C)`, or one embedding for all noises.
        timesteps: Timesteps of the noise levels, `(n,)`, int64.
        noise: Standard normal noises, `(n, C, h, w)`.

    Raises:
        ValueError: If the scheduler's `prediction_type` is unknown.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import demo
        >>> from riemannian_diffusion.adaptation import denoising_losses
        >>> from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline
        >>> pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
        >>> latents, noise = torch.zeros(1, 4, 16, 16), torch.randn(2, 4, 16, 16)
        >>> prompt = torch.zeros(1, 7, pipe.unet.config.cross_attention_dim)
        >>> timesteps = torch.tensor([100, 500])
        >>> with torch.no_grad():
        ...     losses = denoising_losses(
        ...         pipe.unet, pipe.scheduler, latents, prompt, timesteps, noise
        ...     )
        >>> losses.shape
        torch.Size([2])
    """
    abar = scheduler.alphas_cumprod.to(noise)[timesteps].view(-1, 1, 1, 1)
    alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
    kind = getattr(scheduler.config, "prediction_type", "epsilon")
    if kind not in _TARGETS:
        raise ValueError(
            f"The scheduler's `prediction_type` must be one of {list(_TARGETS)}, but got {kind!r}."
        )
    dtype = Layers(model).dtype
    hidden = embeddings.to(noise.device, dtype).expand(len(noise), -1, -1)
    noisy = (alpha * latents + sigma * noise).to(dtype)
    output = model(noisy, timesteps, encoder_hidden_states=hidden, return_dict=False)[0]
    target = _TARGETS[kind](latents, noise, alpha, sigma)
    return (output.to(noise.dtype) - target).square().flatten(1).mean(1)


_TARGETS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": lambda clean, noise, alpha, sigma: noise,
    "v_prediction": lambda clean, noise, alpha, sigma: alpha * noise - sigma * clean,
    "sample": lambda clean, noise, alpha, sigma: clean.expand_as(noise),
}


def _losses(
    model: nn.Module, scheduler, latent: Tensor, embedding: Tensor, batch_size: int, seed: int
) -> Iterator[Tensor]:
    """Yield the loss of one image `(C, h, w)` with fresh noises, without end.

    Each of `batch_size` equal ranges of timesteps gives one uniform timestep. This lowers the
    variance of the loss.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, but got {batch_size}.")
    draws, latent = torch.Generator().manual_seed(seed), latent.detach().float()
    count = len(scheduler.alphas_cumprod)
    while True:
        shares = torch.arange(batch_size) + torch.rand(batch_size, generator=draws)
        timesteps = (shares / batch_size * count).long().clamp(max=count - 1)  # shares may round up
        noise = torch.randn(batch_size, *latent.shape, generator=draws)
        drawn = timesteps.to(latent.device), noise.to(latent.device)
        yield denoising_losses(model, scheduler, latent, embedding, *drawn).mean()


def _descend(
    parameters: list[Tensor],
    losses: Iterator[Tensor],
    num_steps: int,
    lr: float,
    image: int,
    callback: Callback | None,
) -> None:
    """Minimise a loss with Adam."""
    if num_steps < 1 or not lr > 0:
        raise ValueError(
            f"`num_steps` must be at least 1 and `lr` positive, but got {num_steps} and {lr}."
        )
    optimizer = torch.optim.Adam(parameters, lr)
    scaler = torch.amp.GradScaler(parameters[0].device.type)  # for networks in float16
    for step in range(num_steps):
        loss = next(losses)
        value = loss.item()
        if not value < torch.inf:
            raise ValueError(
                f"The loss of image {image} is {value} at step {step}, with lr={lr}: lower `lr`, "
                "or run the network in float32."
            )
        optimizer.zero_grad()
        scaler.scale(loss).backward(inputs=parameters)
        scaler.step(optimizer)
        scaler.update()
        if callback is not None:
            callback(image, step, value)


@contextmanager
def _adapted(unet: Any, config, seed: int) -> Iterator[list[Tensor]]:
    """The network with a new LoRA, whose float32 parameters are given; then without it."""
    draws = torch.Generator().manual_seed(seed)
    attributes = dict(unet.__dict__)
    with Layers(unet).frozen(), torch.random.fork_rng(devices=[]):
        try:
            unet.add_adapter(config, _ADAPTER)
            for name, parameter in unet.named_parameters():
                if ".lora_A." in name:
                    first = torch.randn(parameter.shape, generator=draws) / config.r
                    parameter.data = first.to(parameter.device)
                elif ".lora_B." in name:
                    parameter.data = torch.zeros_like(parameter, dtype=torch.float32)
            yield [p for name, p in unet.named_parameters() if ".lora_" in name]
        finally:
            unet.unload_lora()
            unet.__dict__.clear()
            unet.__dict__.update(attributes)


def _per_image(embeddings: Tensor, latents: Tensor) -> Tensor:
    """Embeddings `(P, L, C)` in float32 on the device of the latents."""
    if latents.ndim != 4 or embeddings.ndim != 3 or len(embeddings) not in (1, len(latents)):
        raise ValueError(
            "`latents` must be (P, C, h, w) and `embeddings` (P, L, C) or (1, L, C), but got "
            f"{tuple(latents.shape)} and {tuple(embeddings.shape)}."
        )
    return embeddings.to(latents.device, torch.float32).expand(len(latents), -1, -1)


def _seed(generator: torch.Generator | None) -> int:
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**62, (1,), generator=generator, device=device))
