"""Train the small diffusion models of rotated digits in `benchmarks/assets`, from scratch.

    python benchmarks/train_rotated_mnist.py --data MNIST_ROOT --work my_checkpoints
        [--digits first] [--minutes 60]

With `--digits first` the data are ten digits, the first of each kind, at every angle. They are ten
closed curves that are known exactly, so geodesics of the learned score can be compared with true
rotations. With `--digits all` the data are the first 9,000 digits at every angle, and the other
1,000 digits are left for tests; at every report the loss on them is printed, too.

The model sees an image of 32 x 32 pixels as `(4, 16, 16)`: each block of 2 x 2 pixels becomes four
channels, which keeps all distances. A training that was interrupted continues from its checkpoint
in `--work`. On a CUDA device the network runs in bfloat16 and is compiled.
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
from digits import NUM_SEEN, load_mnist, rotate

ASSETS = Path(__file__).parent / "assets"
FOLDERS = {"first": "rotated_mnist", "all": "digits"}
CHANNELS = {"first": (32, 64, 112), "all": (64, 96, 128)}
EMA = {"first": 0.999, "all": 0.9995}
# A power above 1 draws more of the weakly noisy timesteps, at which geodesics read the score.
POWERS = {"first": 1.0, "all": 1.5}


def make_model(digits: str) -> tuple[UNet2DModel, DDIMScheduler]:
    """The network at its initial weights, and its schedule of noise."""
    unet = UNet2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=CHANNELS[digits],
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=16,
        norm_num_groups=16,
    )
    return unet, DDIMScheduler(prediction_type="v_prediction", clip_sample=False)


def batch_of(digits: torch.Tensor, num: int, generator: torch.Generator) -> torch.Tensor:
    """Draw digits at random angles: `(num, 4, 16, 16)` in [-1, 1]."""
    draw = {"generator": generator, "device": digits.device}
    which = torch.randint(len(digits), (num,), **draw)
    angles = 2 * math.pi * torch.rand(num, **draw)
    return F.pixel_unshuffle(rotate(digits[which], angles), 2)


def loss_of(
    unet: UNet2DModel,
    scheduler: DDIMScheduler,
    digits: torch.Tensor,
    num: int,
    power: float,
    seed: int,
) -> torch.Tensor:
    """Mean squared error of the velocity, over `num` digits at random angles and timesteps."""
    generator = torch.Generator(digits.device).manual_seed(seed)
    draw = {"generator": generator, "device": digits.device}
    clean = batch_of(digits, num, generator)
    noise = torch.randn(clean.shape, **draw)
    # one random number from each of `num` equal parts of [0, 1], for a steadier loss
    parts = torch.arange(num, device=digits.device) + torch.rand(num, **draw)
    timesteps = ((parts / num) ** power * scheduler.config.num_train_timesteps).long()
    target = scheduler.get_velocity(clean, noise, timesteps)
    noisy = scheduler.add_noise(clean, noise, timesteps)
    with torch.autocast(digits.device.type, torch.bfloat16, enabled=digits.is_cuda):
        output = unet(noisy, timesteps).sample
    return F.mse_loss(output.float(), target)


def train(args: argparse.Namespace) -> UNet2DModel:
    """Train with a cosine rate; return the network with the running average of the weights."""
    images, labels = load_mnist(args.data)
    first = torch.stack([images[labels == kind][0] for kind in range(10)])
    digits = (first if args.digits == "first" else images[:NUM_SEEN]).to(args.device)
    unseen = images[NUM_SEEN:].to(args.device)
    torch.manual_seed(0)
    unet, scheduler = make_model(args.digits)
    average = make_model(args.digits)[0]
    average.load_state_dict(unet.state_dict())
    unet.to(args.device).train(), average.to(args.device)
    on_cuda, power = digits.is_cuda, POWERS[args.digits]
    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.rate, weight_decay=0.0, fused=on_cuda)
    step, seconds = 0, 0.0
    checkpoint = args.work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=args.device)
        step, seconds = state["step"], state["seconds"]
        unet.load_state_dict(state["unet"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
    if on_cuda:
        unet.to(memory_format=torch.channels_last).compile()
    pairs = [list(model.parameters()) for model in (average, unet)]
    start, saved, losses = time.perf_counter() - seconds, time.perf_counter(), []
    share = max(step / args.steps, seconds / (60 * args.minutes))
    while share < 1:
        for group in optimizer.param_groups:
            cosine = (1 + math.cos(math.pi * share)) / 2
            group["lr"] = args.rate * min(1.0, (step + 1) / 200) * (0.02 + 0.98 * cosine)
        loss = loss_of(unet, scheduler, digits, args.batch, power, step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        decay = min(EMA[args.digits], (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(*pairs, 1 - decay)
        losses.append(loss.detach())
        step += 1
        if step % 10 == 0 or step == args.steps:  # reading the clock waits for the device
            losses[-1].item()
            seconds = time.perf_counter() - start
            share = max(step / args.steps, seconds / (60 * args.minutes))
        if step % 100 == 0 or share >= 1:
            mean, losses = float(torch.stack(losses).mean()), []
            line = f"step {step}, loss {mean:.5f}, {seconds:.0f} s"
            if args.digits == "all" and (step % 1000 == 0 or share >= 1):
                with torch.no_grad():
                    for name, some in (("seen", digits), ("unseen", unseen)):
                        line += f", {name} {loss_of(average, scheduler, some, 1024, power, 0):.5f}"
            print(line, flush=True)
        if share >= 1 or time.perf_counter() - saved > 60:
            saved = time.perf_counter()
            state = {
                "step": step,
                "seconds": seconds,
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="root folder of MNIST, as torchvision keeps it")
    parser.add_argument("--digits", choices=FOLDERS, default="first")
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument(
        "--output", type=Path, help="folder of the model (default: one of benchmarks/assets)"
    )
    parser.add_argument("--steps", type=int, default=6000, help="largest number of steps")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="largest duration of all runs together"
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    unet = train(args)
    _, scheduler = make_model(args.digits)
    output = args.output or ASSETS / FOLDERS[args.digits]
    DDIMPipeline(unet.half(), scheduler).save_pretrained(output)


if __name__ == "__main__":
    main()
