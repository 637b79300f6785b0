"""Train the small diffusion model of `benchmarks/assets/rotated_mnist`, from scratch.

    python benchmarks/train_rotated_mnist.py --data MNIST_ROOT --work my_checkpoints

The data are ten digits, the first of each kind, at every angle. They are ten closed curves that are
known exactly, so geodesics of the learned score can be compared with true rotations. The model sees
an image of 32 x 32 pixels as `(4, 16, 16)`: each block of 2 x 2 pixels becomes four channels, which
keeps all distances. A training that was interrupted continues from its checkpoint in `--work`.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from digits import load_mnist, rotate

ASSET = Path(__file__).parent / "assets" / "rotated_mnist"


def make_model() -> tuple[UNet2DModel, DDIMScheduler]:
    """The network at its initial weights, and its schedule of noise."""
    unet = UNet2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(32, 64, 112),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=16,
        norm_num_groups=16,
    )
    return unet, DDIMScheduler(prediction_type="v_prediction", clip_sample=False)


def batch_of(digits: torch.Tensor, num: int, generator: torch.Generator) -> torch.Tensor:
    """Draw digits at random angles: `(num, 4, 16, 16)` in [-1, 1]."""
    which = torch.randint(len(digits), (num,), generator=generator)
    angles = 2 * math.pi * torch.rand(num, generator=generator)
    return F.pixel_unshuffle(rotate(digits[which], angles), 2)


def train(args: argparse.Namespace) -> UNet2DModel:
    """Train with a cosine rate; return the network with the running average of the weights."""
    images, labels = load_mnist(args.data)
    digits = torch.stack([images[labels == kind][0] for kind in range(10)])
    torch.manual_seed(0)
    unet, scheduler = make_model()
    average = make_model()[0]
    average.load_state_dict(unet.state_dict())
    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.rate, weight_decay=0.0)
    generator, first = torch.Generator(), 0
    checkpoint = args.work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint)
        first = state["step"]
        unet.load_state_dict(state["unet"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
    device = args.device
    unet.to(device).train(), average.to(device)
    start, losses = time.perf_counter(), []
    for step in range(first, args.steps):
        warm, share = min(1.0, (step + 1) / 200), step / args.steps
        for group in optimizer.param_groups:
            group["lr"] = args.rate * warm * (0.02 + 0.98 * (1 + math.cos(math.pi * share)) / 2)
        generator.manual_seed(step)
        clean = batch_of(digits, args.batch, generator)
        noise = torch.randn(clean.shape, generator=generator)
        # one timestep from each of `batch` equal parts of the schedule, for a steadier loss
        parts = torch.arange(args.batch) + torch.rand(args.batch, generator=generator)
        timesteps = (parts / args.batch * scheduler.config.num_train_timesteps).long()
        target = scheduler.get_velocity(clean, noise, timesteps).to(device)
        noisy = scheduler.add_noise(clean, noise, timesteps).to(device)
        loss = F.mse_loss(unet(noisy, timesteps.to(device)).sample, target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        decay = min(0.999, (step + 1) / (step + 10))
        with torch.no_grad():
            for old, new in zip(average.parameters(), unet.parameters(), strict=True):
                old.lerp_(new, 1 - decay)
        losses.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == args.steps:
            mean, losses = sum(losses) / len(losses), []
            seconds = time.perf_counter() - start
            print(f"step {step + 1}, loss {mean:.5f}, {seconds:.0f} s", flush=True)
            state = {
                "step": step + 1,
                "unet": unet.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            args.work.mkdir(parents=True, exist_ok=True)
            torch.save(state, checkpoint.with_suffix(".new"))
            os.replace(checkpoint.with_suffix(".new"), checkpoint)
    return average.cpu()


def main(argv: list[str] | None = None) -> None:
    """Train the model, and write it in half precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="root folder of MNIST, as torchvision keeps it")
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--output", type=Path, default=ASSET)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    unet = train(args)
    _, scheduler = make_model()
    DDIMPipeline(unet.half(), scheduler).save_pretrained(args.output)


if __name__ == "__main__":
    main()
