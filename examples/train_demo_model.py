"""Train the Stable Diffusion model that ships with the package, on images of its own renderer.

    python examples/train_demo_model.py --output my_model --work my_checkpoints
        [--start MODEL --vae-steps 0] [--minutes 60]

There are three stages: render the images, train the autoencoder, and train the U-Net with its text
encoder in the latent space. A stage that was interrupted continues from its files in `--work`. With
`--start` the weights are first those of an earlier result. With `--vae-steps 0` its autoencoder is
kept. The result is a folder that `StableDiffusionPipeline.from_pretrained` can load. On a CUDA
device the networks run in bfloat16 and the U-Net is compiled.
`benchmarks/demo_model.py` measures the model on held-out scenes.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from riemannian_diffusion.demo.renderer import HUES, KINDS, caption, random_factors, render

HUE_COLUMN = 1
EMPTY_PROMPT_SHARE, NO_HUE_SHARE = 0.12, 0.05


def make_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer that encodes captions in few tokens, and spells out any other text."""
    letters = sorted(ByteLevel.alphabet())
    tokens, merges = letters + [letter + "</w>" for letter in letters], []
    for word in ("a", *HUES, *KINDS):
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            if (parts[0], parts[1]) not in merges:
                merges.append((parts[0], parts[1]))
                tokens.append(parts[0] + parts[1])
            parts = [parts[0] + parts[1], *parts[2:]]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=16)


def make_models(
    tokenizer: CLIPTokenizer,
) -> tuple[AutoencoderKL, UNet2DConditionModel, CLIPTextModel, DDIMScheduler]:
    """The autoencoder, U-Net and text encoder with initial weights, and the scheduler."""
    vae = AutoencoderKL(
        sample_size=64,
        latent_channels=4,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=8,
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 96, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    scheduler = (
        DDIMScheduler(  # Stable Diffusion's schedule; velocity prediction as in Stable Diffusion 2
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type="v_prediction",
        )
    )
    return vae, unet, text_encoder, scheduler


def render_images(path: Path, num: int, seed: int, device: str) -> dict[str, Tensor]:
    """Render `num` scenes, equally many of each kind; return uint8 images, factors and kinds."""
    at_once = 32 if device == "cpu" else 512
    if path.exists():
        return load_file(path)
    factors = random_factors(num, torch.Generator().manual_seed(seed))
    images = torch.empty(num, 3, 64, 64, dtype=torch.uint8)
    kinds = torch.arange(num) % len(KINDS)
    start = time.time()
    with torch.no_grad():
        for k, kind in enumerate(KINDS):
            for index in (kinds == k).nonzero()[:, 0].split(at_once):
                drawn = render(kind, factors[index].to(device))
                images[index] = (drawn * 255).round().byte().cpu()
            print(f"rendered {kind} in {time.time() - start:.0f} s", flush=True)
    data = {"images": images, "factors": factors, "kinds": kinds}
    save(data, path)
    return data


def save(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file under a temporary name, then rename it."""
    temporary = path.with_suffix(".tmp")
    save_file({k: v.contiguous() for k, v in tensors.items()}, temporary)
    temporary.replace(path)


class Trainer:
    """AdamW with warm-up, a final decay, a moving average of the weights, and checkpoints.

    The training ends after `num_steps` steps, or after `seconds` if that is earlier.
    """

    def __init__(
        self,
        model: nn.Module,
        path: Path,
        *,
        num_steps: int,
        lr: float,
        decay_share: float,
        ema: float,
        seconds: float = math.inf,
    ):
        """Load the checkpoint at `path` if it exists. `step` counts the steps that are done."""
        self.model, self.path, self.num_steps, self.lr = model, path, num_steps, lr
        self.decay_share, self.ema_rate, self.seconds = decay_share, ema, seconds
        fused = next(model.parameters()).is_cuda
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=lr, weight_decay=1e-4, betas=(0.9, 0.99), fused=fused
        )
        self.ema = copy.deepcopy(model).requires_grad_(False)
        self.step, self.start = 0, time.time()
        if path.exists():
            self._load()
        self.first, self.share, self.saved = self.step, self.step / num_steps, self.start

    @property
    def unfinished(self) -> bool:
        """Whether the training goes on."""
        return self.share < 1

    def update(self, loss: Tensor) -> None:
        """Take one step of the optimiser; write a checkpoint every minute and at the end."""
        decay = min(1.0, (1 - self.share) / self.decay_share)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * min(1.0, (self.step + 1) / 100) * decay
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        rate = min(self.ema_rate, self.step / (self.step + 10))
        with torch.no_grad():
            averages, values = (list(m.parameters()) for m in (self.ema, self.model))
            torch._foreach_lerp_(averages, values, 1 - rate)
        if self.step % 10 == 0 or self.step == self.num_steps:
            loss.item()  # the clock is read when the device has finished
            now = time.time()
            self.share = max(self.step / self.num_steps, (now - self.start) / self.seconds)
            if not self.unfinished or now - self.saved > 60:
                self.saved = now
                self._save()

    def report(self, text: str) -> None:
        """Print a line of progress."""
        pace = (time.time() - self.start) / max(1, self.step - self.first)
        print(
            f"{self.path.stem} step {self.step}/{self.num_steps} {pace:.3f} s/step {text}",
            flush=True,
        )

    def _save(self) -> None:
        tensors = {"step": torch.tensor(self.step)}
        names = [name for name, _ in self.model.named_parameters()]
        for name, value, average in zip(
            names, self.model.parameters(), self.ema.parameters(), strict=True
        ):
            state = self.optimizer.state[value]
            tensors |= {f"model.{name}": value.detach(), f"ema.{name}": average}
            tensors |= {f"m.{name}": state["exp_avg"], f"v.{name}": state["exp_avg_sq"]}
        save(tensors, self.path)

    def _load(self) -> None:
        tensors = load_file(self.path, device=str(next(self.model.parameters()).device))
        self.step = int(tensors["step"])
        pairs = zip(self.model.named_parameters(), self.ema.parameters(), strict=True)
        with torch.no_grad():
            for (name, value), average in pairs:
                value.copy_(tensors[f"model.{name}"])
                average.copy_(tensors[f"ema.{name}"])
                self.optimizer.state[value] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": tensors[f"m.{name}"].clone(),
                    "exp_avg_sq": tensors[f"v.{name}"].clone(),
                }


def train_vae(
    vae: AutoencoderKL, data: dict[str, Tensor], path: Path, num_steps: int, device: str
) -> AutoencoderKL:
    """Train the autoencoder; return it with averaged weights.

    The loss has absolute and squared errors and a weak Kullback-Leibler term.
    """
    vae = vae.to(device, memory_format=torch.channels_last)
    trainer = Trainer(vae, path, num_steps=num_steps, lr=1e-3, decay_share=0.5, ema=0.995)
    generator = torch.Generator().manual_seed(trainer.step)
    while trainer.unfinished:
        index = torch.randint(len(data["images"]), (12,), generator=generator)
        images = (data["images"][index].to(device).float() / 127.5 - 1).contiguous(
            memory_format=torch.channels_last
        )
        with torch.autocast(device, torch.bfloat16):
            posterior = vae.encode(images).latent_dist
            decoded = vae.decode(posterior.sample()).sample.float()
        error = decoded - images
        kl = (
            0.5
            * (
                posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()
            ).mean()
        )
        trainer.update(error.abs().mean() + error.square().mean() + 1e-4 * kl)
        if trainer.step % 50 == 0:
            psnr = -10 * (error.square().mean() / 4).log10()
            trainer.report(f"psnr {psnr:.2f} dB kl {kl:.2f}")
    return trainer.ema


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor, device: str) -> Tensor:
    """Means of the posteriors of images, without the scaling factor."""
    batches = [
        vae.encode(b.to(device).float() / 127.5 - 1).latent_dist.mean for b in images.split(64)
    ]
    return torch.cat(batches)


def train_unet(
    model: nn.ModuleDict,
    scheduler: DDIMScheduler,
    tokenizer: CLIPTokenizer,
    latents: Tensor,
    data: dict[str, Tensor],
    path: Path,
    *,
    num_steps: int,
    batch: int,
    seconds: float,
    device: str,
) -> nn.ModuleDict:
    """Train the U-Net and the text encoder; return them with averaged weights.

    The network predicts velocities. Some captions are dropped or lose their hue.
    """
    prompts = [
        "",
        *(f"a {kind}" for kind in KINDS),
        *(f"a {hue} {kind}" for hue in HUES for kind in KINDS),
    ]
    number = {prompt: i for i, prompt in enumerate(prompts)}
    tokens = tokenizer(
        prompts, padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids.to(device)
    hues, kinds = data["factors"][:, HUE_COLUMN].tolist(), data["kinds"].tolist()
    full = torch.tensor([number[caption(KINDS[k], h)] for k, h in zip(kinds, hues, strict=True)])
    no_hue = torch.tensor([number[f"a {KINDS[k]}"] for k in kinds])
    full, no_hue = full.to(device), no_hue.to(device)

    model = model.to(device, memory_format=torch.channels_last)
    trainer = Trainer(
        model, path, num_steps=num_steps, lr=6e-4, decay_share=0.3, ema=0.998, seconds=seconds
    )
    on_cuda = latents.is_cuda
    if on_cuda:
        model["unet"].compile()
    draw = {"generator": torch.Generator(device).manual_seed(trainer.step), "device": device}
    abar = scheduler.alphas_cumprod.to(device)
    running = None
    while trainer.unfinished:
        index = torch.randint(len(latents), (batch,), **draw)
        chance = torch.rand(batch, **draw)
        prompt = torch.where(chance < EMPTY_PROMPT_SHARE + NO_HUE_SHARE, no_hue[index], full[index])
        prompt = torch.where(chance < EMPTY_PROMPT_SHARE, 0, prompt)
        timesteps = torch.randint(len(abar), (batch,), **draw)
        noise = torch.randn(batch, *latents.shape[1:], **draw)
        alpha, sigma = (a.sqrt()[timesteps, None, None, None] for a in (abar, 1 - abar))
        noisy, velocity = (
            alpha * latents[index] + sigma * noise,
            alpha * noise - sigma * latents[index],
        )
        with torch.autocast(noise.device.type, torch.bfloat16, enabled=on_cuda):
            hidden = model["text_encoder"](tokens).last_hidden_state[prompt]
            output = model["unet"](noisy, timesteps, hidden).sample
        loss = F.mse_loss(output.float(), velocity)
        trainer.update(loss)
        running = loss.detach() if running is None else running.lerp(loss.detach(), 0.02)
        if trainer.step % 50 == 0 or not trainer.unfinished:
            trainer.report(f"loss {float(running):.4f}")
    return trainer.ema


def main(argv: list[str] | None = None) -> None:
    """Train the model, and write it in half precision."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of the finished pipeline"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of images and checkpoints")
    parser.add_argument("--start", help="folder of a model with the first weights")
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--vae-steps", type=int, default=3600)
    parser.add_argument("--unet-steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=64, help="size of a batch of the U-Net")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="largest duration of this run"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)

    if not args.vae_steps and not args.start:
        parser.error("--vae-steps 0 keeps an autoencoder; name its folder with --start.")
    start = time.time()
    torch.manual_seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    vae, unet, text_encoder, scheduler = make_models(tokenizer)
    if args.start:
        given = StableDiffusionPipeline.from_pretrained(args.start, torch_dtype=torch.float32)
        vae.register_to_config(scaling_factor=given.vae.config.scaling_factor)
        for name, part in (("vae", vae), ("unet", unet), ("text_encoder", text_encoder)):
            part.load_state_dict(getattr(given, name).state_dict())
    data = render_images(args.work / "images.safetensors", args.images, args.seed, args.device)
    if args.vae_steps:
        path = args.work / "vae.safetensors"
        vae = train_vae(vae.train(), data, path, args.vae_steps, args.device)
    latents = encode(vae.to(args.device).eval(), data["images"], args.device)
    if args.vae_steps:
        vae.register_to_config(scaling_factor=1 / latents.std().item())
    latents *= vae.config.scaling_factor
    model = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder}).train()
    model = train_unet(
        model,
        scheduler,
        tokenizer,
        latents,
        data,
        args.work / "unet.safetensors",
        num_steps=args.unet_steps,
        batch=args.batch,
        seconds=60 * args.minutes - (time.time() - start),
        device=args.device,
    ).eval()
    pipe = StableDiffusionPipeline(
        vae=vae.cpu(),
        text_encoder=model["text_encoder"].cpu(),
        tokenizer=tokenizer,
        unet=model["unet"].cpu(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.to(torch.float16).save_pretrained(args.output, safe_serialization=True)


if __name__ == "__main__":
    main()
