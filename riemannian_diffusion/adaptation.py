"""A model fitted to the keyframes of one morph: a prompt embedding and a LoRA for each of them.

DiffMorpher (Zhang et al., arXiv 2312.07409) fits a LoRA to each image and mixes the LoRAs along the
path; IMPUS (Yang et al., arXiv 2311.06792) fits each image's prompt embedding. Both minimise the
denoising loss of the image alone. Images are fitted one after the other with the same draws, so
what is found for one does not depend on the others. Fitting LoRAs needs peft; using them does not.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from riemannian_diffusion.media import write_atomically

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
    """Fit a prompt embedding to each image, the model as it is (arXiv 2311.06792).

    Args:
        model: The denoiser, called as `model(x, t, encoder_hidden_states=..., return_dict=False)`.
        scheduler: Gives `alphas_cumprod` and the prediction type; it is not stepped.
        latents: The images' clean latents `(P, C, h, w)`.
        embeddings: Where to start, `(P, L, C)` or `(1, L, C)`.
        num_steps: Steps of Adam for each image.
        lr: Adam's learning rate.
        batch_size: Noises per step.
        generator: Source of the one seed that all draws come from; None takes torch's own.
        callback: Called as `callback(image, step, loss)` after every step.

    Returns:
        `(P, L, C)`, float32 whatever the model's dtype, on the latents' device.

    Raises:
        ValueError: If shapes disagree, an argument is out of range, or the loss is not finite.
    """
    embeddings = _per_image(embeddings, latents)
    seed, found = _seed(generator), []
    with _frozen(model), torch.enable_grad():
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
    """Fit a LoRA of the attention's projections to each image (arXiv 2312.07409), with peft.

    Args:
        unet: A diffusers network. Afterwards, also after an exception, it is as it was.
        scheduler: As in `fit_embeddings`.
        latents: The images' clean latents `(P, C, h, w)`.
        embeddings: Their prompts' `(P, L, C)` or `(1, L, C)`.
        rank: Of each projection's change.
        num_steps: Steps of Adam for each image; published are 200.
        lr: Adam's learning rate; published is 2e-4.
        batch_size: Noises per step.
        generator: As in `fit_embeddings`.
        callback: As in `fit_embeddings`.

    Returns:
        For each image its LoRA, named as in `peft.get_peft_model_state_dict`:
        `<module>.lora_A.weight` `(rank, in)` and `<module>.lora_B.weight` `(out, rank)`, float32 on
        the CPU. Their scale is 1 (`lora_alpha` equal to `rank`); diffusers takes one with
        `unet.load_lora_adapter(lora, prefix=None)`.

    Raises:
        ImportError: If peft is not installed.
        ValueError: As in `fit_embeddings`, or if the network has adapters already.
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
    if getattr(unet, "peft_config", None):
        raise ValueError(
            f"The network has the adapters {list(unet.peft_config)} already. Merge them first: "
            "pipe.fuse_lora(), then pipe.unload_lora_weights()."
        )
    unet, embeddings = _eager(unet), _per_image(embeddings, latents)
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


class LoraMix(nn.Module):
    """A network with a mixture of LoRAs of its own for each point of the batch.

    Point k sees the weights `W + sum_p weights[k, p] B_p A_p`: along DiffMorpher's path
    (arXiv 2312.07409) the LoRAs' changes are interpolated. Reverse mode, `torch.func` and gradient
    checkpointing work; compiled networks run uncompiled. Between calls the network is as it was.

    Args:
        unet: The network, called as in `fit_embeddings`.
        loras: P LoRAs as `fit_lora` returns them.

    Raises:
        ValueError: If there is no LoRA, or the network has no such modules.
    """

    def __init__(self, unet: nn.Module, loras: Sequence[Mapping[str, Tensor]]):
        super().__init__()
        if not loras or any(lora.keys() != loras[0].keys() for lora in loras):
            raise ValueError(
                f"`loras` must be one or more LoRAs of the same modules, but got {len(loras)}: fit "
                "them together with `fit_lora`."
            )
        self.unet, self.num_loras = _eager(unet), len(loras)
        self._names = [k.removesuffix(".lora_A.weight") for k in loras[0] if ".lora_A." in k]
        like = next(unet.parameters())
        for i, name in enumerate(self._names):
            try:
                self.unet.get_submodule(name)
            except AttributeError as error:
                raise ValueError(
                    f"The network has no module {name!r}: the LoRAs were fitted to another one."
                ) from error
            down = torch.cat([lora[f"{name}.lora_A.weight"] for lora in loras])  # (P r, in)
            up = torch.cat([lora[f"{name}.lora_B.weight"] for lora in loras], 1)  # (out, P r)
            self.register_buffer(f"_down{i}", down.to(like), persistent=False)
            self.register_buffer(f"_up{i}", up.to(like), persistent=False)
        self._weights: Tensor | None = None  # of the call in progress

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        encoder_hidden_states: Tensor,
        weights: Tensor,
        return_dict: bool = False,
    ):
        """The network's output.

        Args:
            x: `(K, C, h, w)`.
            t: The timestep, one or `(K,)`.
            encoder_hidden_states: `(K, L, C)`.
            weights: `(K, P)`, or `(1, P)` for all points alike.
            return_dict: As in diffusers.

        Raises:
            ValueError: If `weights` has another shape.
        """
        if (
            weights.ndim != 2
            or weights.shape[1] != self.num_loras
            or len(weights) not in (1, len(x))
        ):
            raise ValueError(
                f"`weights` must be ({len(x)}, {self.num_loras}), points by LoRAs, but got "
                f"{tuple(weights.shape)}."
            )
        with self._mixing(weights), ExitStack() as stack:
            for module in self.unet.modules():
                if getattr(module, "gradient_checkpointing", False):
                    checkpoint = partial(self._checkpoint, module._gradient_checkpointing_func)
                    stack.enter_context(
                        _exchanged(module, "_gradient_checkpointing_func", checkpoint)
                    )
            return self.unet(
                x, t, encoder_hidden_states=encoder_hidden_states, return_dict=return_dict
            )

    @contextmanager
    def _mixing(self, weights: Tensor) -> Iterator[None]:
        """The LoRAs act on the network inside, unless they do so already."""
        if self._weights is not None:
            yield
            return
        with ExitStack() as stack:
            # compiled code would not see the hooks
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(_exchanged(self, "_weights", weights))
            for i, name in enumerate(self._names):
                add = partial(self._add, i)
                # before `interpolated_attention`, which is to see keys with their LoRAs
                stack.enter_context(
                    self.unet.get_submodule(name).register_forward_hook(add, prepend=True)
                )
            yield

    def _add(self, index: int, module: nn.Module, args: tuple[Tensor, ...], output: Tensor):
        down, up = getattr(self, f"_down{index}"), getattr(self, f"_up{index}")
        inner = args[0] @ down.to(args[0]).T  # (K, tokens, P r)
        weights = self._weights.to(inner).repeat_interleave(len(down) // self.num_loras, 1)
        return output + (inner * weights[:, None]) @ up.to(inner).T

    def _checkpoint(self, checkpoint: Callable, block: Callable, *args):
        """Gradient checkpointing whose reverse pass evaluates a block with the same weights."""
        weights = self._weights

        def evaluate(*args):
            with self._mixing(weights):
                return block(*args)

        return checkpoint(evaluate, *args)


@contextmanager
def interpolated_attention(
    unet: nn.Module, weights: Tensor, *, blocks: str = "up_blocks"
) -> Iterator[None]:
    """Self-attention inside reads interpolated keys and values (DiffMorpher, arXiv 2312.07409).

    Those of point k are `(1 - weights[k]) K_first + weights[k] K_last` of the batch's first and
    last point, which therefore has to be a whole path. DiffMorpher does so in the first 60 % of the
    sampling steps. Compiled networks run uncompiled; afterwards the network is as it was.

    Args:
        unet: A diffusers network.
        weights: Fractions of the path `(K,)`, from 0 to 1.
        blocks: Where: modules whose names begin so. DiffMorpher's are those that sample up.

    Raises:
        ValueError: If no self-attention is there, its projections are fused, or a batch inside has
            another length than `weights`.
    """
    found = [
        module
        for name, module in _eager(unet).named_modules()
        if name.startswith(blocks) and isinstance(module, Attention)
        if not module.is_cross_attention
    ]
    if not found:
        raise ValueError(f"The network has no self-attention below blocks={blocks!r}.")
    if any(getattr(module, "fused_projections", False) for module in found):
        raise ValueError(
            "The network's projections are fused: call unet.unfuse_qkv_projections() first."
        )

    def interpolate(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if len(output) != len(weights):
            raise ValueError(
                f"interpolated_attention has `weights` for {len(weights)} points, but the network "
                f"was given a batch of {len(output)}: it needs the whole path at once."
            )
        fractions = weights.to(output).view(-1, *[1] * (output.ndim - 1))
        return torch.lerp(output[:1], output[-1:], fractions)

    with ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        for module in found:
            for projection in (module.to_k, module.to_v):
                stack.enter_context(projection.register_forward_hook(interpolate))
        yield


@dataclass(frozen=True)
class Adaptation:
    """What was fitted to the P keyframes of a morph.

    Attributes:
        embeddings: Their prompt embeddings `(P, L, C)`, or None.
        loras: Their LoRAs as `fit_lora` returns them, or None.
    """

    embeddings: Tensor | None = None
    loras: list[dict[str, Tensor]] | None = None

    def __post_init__(self):
        counts = {len(part) for part in (self.embeddings, self.loras) if part is not None}
        if len(counts) != 1 or 0 in counts:
            raise ValueError(
                "An Adaptation needs embeddings, LoRAs or both, for the same images, but got "
                f"them for {sorted(counts)} images."
            )

    def save(self, path: str | os.PathLike) -> None:
        """Write it to one safetensors file, under a temporary name first."""
        from riemannian_diffusion import __version__

        tensors = {} if self.embeddings is None else {"embeddings": self.embeddings}
        for i, lora in enumerate(self.loras or []):
            tensors |= {f"lora.{i}.{name}": value for name, value in lora.items()}
        ranks = [len(value) for name, value in tensors.items() if name.endswith(".lora_A.weight")]
        count = len(self.embeddings) if self.loras is None else len(self.loras)
        metadata = {
            "format": _ADAPTER,
            "version": __version__,
            "num_images": str(count),
            "rank": str(max(ranks, default=0)),
        }
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        write_atomically(Path(path), lambda file: save_file(tensors, file, metadata))

    @classmethod
    def load(cls, path: str | os.PathLike) -> Adaptation:
        """Read what `save` wrote, on the CPU.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged or something else.
        """
        advice = "Remove it and fit again, with `adapt`."
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except SafetensorError as error:
            raise ValueError(f"{path} is no adaptation, or damaged ({error}). {advice}") from error
        if metadata.get("format") != _ADAPTER:
            raise ValueError(f"{path} was not written by Adaptation.save. {advice}")
        embeddings = tensors.pop("embeddings", None)
        loras: list[dict[str, Tensor]] = [{} for _ in range(int(metadata["num_images"]))]
        for key, value in tensors.items():
            _, index, name = key.split(".", 2)
            loras[int(index)][name] = value
        return cls(embeddings, loras if tensors else None)


def adapt(
    pipe,
    images: Sequence,
    prompts: str | Sequence[str] = "",
    *,
    embedding_steps: int = 50,
    embedding_lr: float = 3e-2,
    lora_steps: int = 100,
    lora_lr: float = 1e-3,
    rank: int = 16,
    batch_size: int = 4,
    seed: int = 0,
    cache_dir: str | os.PathLike | None = None,
    callback: Callable[[str, int, int, float], None] | None = None,
) -> Adaptation:
    """Fit a pipeline's model to the keyframes of one morph: embeddings first, then LoRAs with them.

    Args:
        pipe: A `GeodesicInterpolationPipeline`; it stays as it is.
        images: Its keyframes, as the pipeline takes them.
        prompts: One prompt, or one per keyframe: where the embeddings start.
        embedding_steps: Steps per image for its embedding; 0 keeps the prompts.
        embedding_lr: Their learning rate.
        lora_steps: Steps per image for its LoRA; 0 fits none.
        lora_lr: Their learning rate.
        rank: As in `fit_lora`.
        batch_size: Noises per step.
        seed: Of all draws.
        cache_dir: A folder where the result is kept under a hash of everything it depends on, and
            found next time. A damaged file is fitted again, with a warning.
        callback: Called as `callback(part, image, step, loss)` after every step, `part` being
            "embeddings" or "loras".

    Returns:
        The adaptation, on the CPU.

    Raises:
        ImportError: If LoRAs are asked for and peft is not installed.
        ValueError: If an argument is out of range or the counts of images and prompts disagree.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if embedding_steps < 0 or lora_steps < 0 or embedding_steps + lora_steps == 0:
        raise ValueError(
            "adapt needs `embedding_steps` or `lora_steps` above 0, "
            f"but got {embedding_steps} and {lora_steps}."
        )
    settings = {
        "embeddings": [embedding_steps, embedding_lr],
        "loras": [lora_steps, lora_lr, rank],
        "batch_size": batch_size,
        "seed": seed,
    }
    with torch.no_grad():
        pixels = pipe._keyframes(images)
        if len(texts) not in (1, len(pixels)):
            raise ValueError(
                f"`prompts` must be one prompt or one per image, but got {len(texts)} prompts for "
                f"{len(pixels)} images."
            )
        file = cache_dir and Path(
            cache_dir, f"{_digest(pipe, pixels, texts, settings)}.safetensors"
        )
        if file and file.exists():
            try:
                return Adaptation.load(file)
            except ValueError as error:
                warnings.warn(f"Fitting again: {error}", stacklevel=2)
        latents = pipe._encode_images(pixels.to(pipe._execution_device), None)
        embeddings = pipe._encode_prompts(texts, "", False)[0]

    total = (embedding_steps + lora_steps) * len(pixels)
    fitted, loras = None, None
    with pipe.progress_bar(total=total) as bar:

        def report(part: str, image: int, step: int, loss: float) -> None:
            bar.set_description(f"Fitting {part}")
            bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
            bar.update()
            if callback is not None:
                callback(part, image, step, loss)

        def options(part: str) -> dict[str, Any]:
            generator = torch.Generator().manual_seed(seed)
            shared = {"batch_size": batch_size, "generator": generator}
            return shared | {"callback": partial(report, part)}

        given = (pipe.unet, pipe.scheduler, latents)
        if embedding_steps:
            fitted = embeddings = fit_embeddings(
                *given,
                embeddings,
                num_steps=embedding_steps,
                lr=embedding_lr,
                **options("embeddings"),
            )
        if lora_steps:
            loras = fit_lora(
                *given,
                embeddings,
                rank=rank,
                num_steps=lora_steps,
                lr=lora_lr,
                **options("loras"),
            )
    pipe.maybe_free_model_hooks()
    adaptation = Adaptation(None if fitted is None else fitted.cpu(), loras)
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        adaptation.save(file)
    return adaptation


def denoising_losses(
    model: nn.Module,
    scheduler,
    latents: Tensor,
    embeddings: Tensor,
    timesteps: Tensor,
    noise: Tensor,
) -> Tensor:
    """Mean squared errors of a model's prediction at noised points, `(n,)`.

    Args:
        model: As in `fit_embeddings`.
        scheduler: As in `fit_embeddings`.
        latents: Clean points `(n, C, h, w)`, or one for all.
        embeddings: Their prompts' `(n, L, C)`, or one for all.
        timesteps: `(n,)`.
        noise: `(n, C, h, w)`.

    Raises:
        ValueError: If the scheduler's `prediction_type` is unknown.
    """
    abar = scheduler.alphas_cumprod.to(noise)[timesteps].view(-1, 1, 1, 1)
    alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
    kind = getattr(scheduler.config, "prediction_type", "epsilon")
    if kind not in _TARGETS:
        raise ValueError(
            f"The scheduler's `prediction_type` must be one of {list(_TARGETS)}, but got {kind!r}."
        )
    dtype = next(model.parameters()).dtype
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
    """The loss of one image `(C, h, w)`, over and over with fresh noises.

    Timesteps are uniform, one in each of `batch_size` equal ranges: together they vary less.
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
    """Minimise a loss by Adam."""
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
def _adapted(unet: nn.Module, config, seed: int) -> Iterator[list[Tensor]]:
    """The network with a new LoRA, whose float32 parameters are given; then without it."""
    draws = torch.Generator().manual_seed(seed)
    attributes = dict(unet.__dict__)
    with _frozen(unet), torch.random.fork_rng(devices=[]):
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


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter requires a gradient inside; afterwards each is as it was."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.requires_grad_(False)
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


@contextmanager
def _exchanged(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _eager(model: nn.Module) -> nn.Module:
    """What `torch.compile` was given."""
    return getattr(model, "_orig_mod", model)


def _per_image(embeddings: Tensor, latents: Tensor) -> Tensor:
    """Embeddings `(P, L, C)` in float32 on the latents' device."""
    if latents.ndim != 4 or embeddings.ndim != 3 or len(embeddings) not in (1, len(latents)):
        raise ValueError(
            "`latents` must be (P, C, h, w) and `embeddings` (P, L, C) or (1, L, C), but got "
            f"{tuple(latents.shape)} and {tuple(embeddings.shape)}."
        )
    return embeddings.to(latents.device, torch.float32).expand(len(latents), -1, -1)


def _seed(generator: torch.Generator | None) -> int:
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**62, (1,), generator=generator, device=device))


def _digest(pipe, pixels: Tensor, texts: list[str], settings: dict[str, Any]) -> str:
    """A hash of everything that an adaptation depends on.

    Of each weight at most 1,024 entries, evenly spread, are read: another network differs in them.
    """
    from riemannian_diffusion import __version__

    digest = hashlib.sha256()
    configs = [dict(part.config) for part in (pipe.unet, pipe.vae, pipe.scheduler)]
    described = [__version__, texts, settings, configs]
    digest.update(json.dumps(described, sort_keys=True, default=str).encode())
    for module in (pipe.unet, pipe.vae, pipe.text_encoder):
        for name, weight in module.state_dict().items():
            entries = weight.flatten()[:: max(1, weight.numel() // 1024)].cpu().contiguous()
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
            digest.update(entries.view(torch.uint8).numpy().tobytes())
    digest.update(f"{tuple(pixels.shape)}".encode() + pixels.cpu().numpy().tobytes())
    return digest.hexdigest()[:32]
