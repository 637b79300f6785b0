"""Morphs between notes, which are waveforms: the library is not limited to images.

    python examples/audio.py --output audio.wav

A note is a tone of 128 samples with two factors, pitch and phase. A small `UNet1DModel` learns such
notes here. Three methods then morph a note into the note a fifth above it: a cross-fade of the
waveforms, a straight line between the inverted notes, and the geodesic between the inverted notes.
A cross-fade sounds both notes at once. On the geodesic the pitch glides. The table has two numbers
for each method: the mean distance of a frame to the nearest true note, as a share of a note's norm,
and the largest step of that note's pitch between neighbouring frames, in cycles per frame. The
pitch rises from 4 to 6. The WAV file plays the geodesic.
"""

from __future__ import annotations

import argparse
import math
import wave
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet1DModel
from torch import Tensor

from riemannian_diffusion import (
    DiffusionScore,
    TangentNormalMetric,
    geodesic,
    invert,
    lerp,
    sample,
)

NUM_SAMPLES = 128  # samples of a note
SAMPLE_RATE = 8000
HOLD = 1024  # samples for which each frame sounds
NUM_FRAMES = 17
PITCHES = (3.5, 6.5)  # lowest and highest, in cycles per frame
NUM_LEVELS = 300  # only these timesteps are trained; noisier ones are not needed
TIMESTEPS = range(20, 161, 20)  # the end points are inverted to the last of them


def notes(pitch: Tensor, phase: Tensor) -> Tensor:
    """Windowed tones with an overtone, `(K, 1, 128)`, whose root mean square is 1.

    Args:
        pitch: Cycles per frame, `(K,)`.
        phase: Phase at the middle of the frame in turns, `(K,)`.
    """
    time = (torch.arange(NUM_SAMPLES) + 0.5) / NUM_SAMPLES - 0.5
    angle = 2 * math.pi * (pitch[:, None] * time + phase[:, None])
    tone = (angle.cos() + 0.3 * (2 * angle).cos()) * torch.cos(math.pi * time) ** 2
    return (tone / tone.square().mean(1, keepdim=True).sqrt())[:, None]


def nearest(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Distance to the nearest note, as a share of its norm, and the pitch of that note."""
    pitches = torch.linspace(PITCHES[0] - 0.5, PITCHES[1] + 0.5, 401)
    grid = torch.cartesian_prod(pitches, torch.linspace(0, 1, 33)[:-1])
    distances = torch.cdist(frames.flatten(1), notes(*grid.T).flatten(1))
    distance, index = distances.min(1)
    return distance / NUM_SAMPLES**0.5, grid[index, 0]


def train(scheduler: DDPMScheduler, num_steps: int) -> UNet1DModel:
    """Train a small network on notes by velocity prediction."""
    model = UNet1DModel(
        sample_size=NUM_SAMPLES,
        in_channels=1,
        out_channels=1,
        extra_in_channels=16,
        time_embedding_type="positional",
        block_out_channels=(16, 32),
        down_block_types=("DownBlock1DNoSkip", "DownBlock1D"),
        up_block_types=("UpBlock1D", "UpBlock1DNoSkip"),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.99))
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, num_steps, pct_start=0.1)
    for _ in range(num_steps):
        pitch, phase = torch.rand(2, 16)
        clean = notes(PITCHES[0] + (PITCHES[1] - PITCHES[0]) * pitch, phase)
        noise, t = torch.randn_like(clean), torch.randint(NUM_LEVELS, (len(clean),))
        velocity = scheduler.get_velocity(clean, noise, t)
        output = model(scheduler.add_noise(clean, noise, t), t, return_dict=False)[0]
        optimizer.zero_grad()
        F.mse_loss(output, velocity).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rates.step()
    return model.eval()


def write_wav(frames: Tensor, path: Path) -> None:
    """Write a WAV file in which each frame sounds for `HOLD` samples.

    A frame is repeated every two periods of its own pitch.
    """
    sound = torch.zeros(len(frames) * HOLD + NUM_SAMPLES)
    hops = (2 * NUM_SAMPLES / nearest(frames)[1]).round().int().tolist()
    start = 0
    while start < len(frames) * HOLD:
        which = start // HOLD
        sound[start : start + NUM_SAMPLES] += frames[which, 0]
        start += hops[which]
    data = (sound * (0.9 * 32767 / sound.abs().max())).round().short().numpy().astype("<i2")
    part = path.with_name(f".part-{path.name}")
    with wave.open(str(part), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(data.tobytes())
    part.replace(path)


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Train the network, make the three morphs, and write the sound; return the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("audio.wav"))
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    scheduler = DDPMScheduler(prediction_type="v_prediction")
    levels = partial(DiffusionScore, train(scheduler, args.steps), scheduler)

    ends = notes(torch.tensor([4.0, 6.0]), torch.zeros(2))
    noises = invert(levels, ends, TIMESTEPS)
    found = geodesic(TangentNormalMetric(levels(TIMESTEPS[-1])), *noises, init="lerp")
    even = torch.linspace(0, 1, NUM_FRAMES)
    morphs = {
        "cross-fade of waveforms": lerp(*ends, NUM_FRAMES),
        "straight between noises": sample(levels, lerp(*noises, NUM_FRAMES), TIMESTEPS),
        "geodesic": sample(levels, found(even), TIMESTEPS),
    }
    write_wav(morphs["geodesic"], args.output)

    print(f"geodesic: {found.status} after {found.num_evals} evaluations")
    print("| method | mean distance to nearest note | largest jump in pitch |\n|---|---|---|")
    table = {}
    for name, frames in morphs.items():
        distance, pitch = nearest(frames)
        row = {"distance": float(distance.mean()), "jump": float(pitch.diff().abs().max())}
        print(f"| {name} | {row['distance']:.3f} | {row['jump']:.2f} |")
        table[name] = row
    return table


if __name__ == "__main__":
    main()
