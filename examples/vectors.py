"""Geodesics, extrapolation and means for rows of a table, with a network that is not a U-Net.

    python examples/vectors.py

The table has 2,000 rows and 8 standardised columns. Its rows lie on a curved surface with two
hidden factors, up to a little measurement noise. A small residual network with the interface of a
diffusers model learns these rows here. Its score gives the dimension of the surface, the geodesic
between two rows, its continuation beyond the second row, and the mean of five rows. The printed
table compares their distances to the surface, in standard deviations of a column, with those of
flat space: the straight line, its continuation, and the mean of every column.
"""

from __future__ import annotations

import argparse
import math

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import Tensor, nn

from riemannian_diffusion import (
    DiffusionScore,
    TangentNormalMetric,
    extrapolate,
    frechet_mean,
    geodesic,
    intrinsic_dimension,
    lerp,
)

NUM_ROWS, NUM_COLUMNS = 2000, 8
MEASUREMENT_NOISE = 0.05
NUM_LEVELS = 500  # only these timesteps are trained; noisier ones are not needed
TIMESTEP = 80  # timestep of the score
BEYOND = 1.5  # length of the continuation


class Surface:
    """Rows that depend on two factors: an angle in [0, 1.5 pi] and a height in [-1, 1]."""

    def __init__(self, generator: torch.Generator):
        self.mix = torch.randn(5, NUM_COLUMNS, generator=generator)
        self.mean, self.std = 0.0, 1.0
        rows = self(self.random(NUM_ROWS, generator))
        self.mean, self.std = rows.mean(0), rows.std(0)
        axes = torch.linspace(0, 1.5 * math.pi, 601), torch.linspace(-1, 1, 201)
        self.grid = self(torch.cartesian_prod(*axes))

    def random(self, num: int, generator: torch.Generator) -> Tensor:
        """Random factors, `(num, 2)`."""
        low, high = torch.tensor([[0, -1], [1.5 * math.pi, 1]])
        return low + (high - low) * torch.rand(num, 2, generator=generator)

    def __call__(self, factors: Tensor) -> Tensor:
        """Standardised rows `(K, 8)` of factors `(K, 2)`."""
        angle, height = factors.T
        bend = 0.3 * height
        parts = [angle.cos(), angle.sin(), height]
        parts += [bend * (2 * angle).cos(), bend * (2 * angle).sin()]
        return (torch.stack(parts, 1) @ self.mix - self.mean) / self.std

    def distance(self, rows: Tensor) -> float:
        """Mean distance to the nearest row of a dense grid."""
        return float(torch.cdist(rows, self.grid).min(1).values.mean())


class ResidualMLP(nn.Module):
    """A residual network that is called as `model(x, t, return_dict=False)[0]`."""

    def __init__(self, width: int = 128, depth: int = 3):
        super().__init__()
        self.first, self.time = nn.Linear(NUM_COLUMNS, width), nn.Linear(16, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, 2 * width),
                nn.SiLU(),
                nn.Linear(2 * width, width),
            )
            for _ in range(depth)
        )
        self.last = nn.Linear(width, NUM_COLUMNS)

    def forward(self, x: Tensor, t: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """The velocity at rows `(K, 8)` and one or K timesteps, in a tuple as in diffusers."""
        phase = math.pi / 1000 * t.reshape(-1, 1) * torch.arange(1, 9, device=x.device)
        hidden = self.first(x) + self.time(torch.cat([phase.cos(), phase.sin()], 1))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return (self.last(hidden),)


def train(rows: Tensor, num_steps: int, generator: torch.Generator) -> DiffusionScore:
    """Train the network on rows by velocity prediction; return it as a score."""
    model, scheduler = ResidualMLP(), DDPMScheduler(prediction_type="v_prediction")
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, num_steps)
    for _ in range(num_steps):
        clean = rows[torch.randint(len(rows), (256,), generator=generator)]
        noise = torch.randn(clean.shape, generator=generator)
        t = torch.randint(NUM_LEVELS, (len(clean),), generator=generator)
        velocity = scheduler.get_velocity(clean, noise, t)
        output = model(scheduler.add_noise(clean, noise, t), t, return_dict=False)[0]
        optimizer.zero_grad()
        F.mse_loss(output, velocity).backward()
        optimizer.step()
        rates.step()
    return DiffusionScore(model.eval(), scheduler, TIMESTEP)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train the network and print the comparison; return the printed numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    surface = Surface(generator)
    rows = surface(surface.random(NUM_ROWS, generator))
    rows += MEASUREMENT_NOISE * torch.randn(rows.shape, generator=generator)
    score = train(rows, args.steps, generator)
    metric, alpha = TangentNormalMetric(score), score.alpha

    dimensions = intrinsic_dimension(score, alpha * rows[:50]).dimension
    dimension, share = int(dimensions.mode().values), float((dimensions == 2).float().mean())
    print(f"intrinsic dimension: {dimension}, found as 2 at {share:.0%} of 50 rows")

    first, last = surface(torch.tensor([[0.3, 0.5], [3.0, -0.2]]))
    found = geodesic(metric, alpha * first, alpha * last, init="lerp")
    path = found(torch.linspace(0, 1, 17))
    on = extrapolate(path, alpha * BEYOND, project=score.denoise)[len(path) :] / alpha
    far = (on - last).norm(dim=1, keepdim=True)
    straight_on = last + far * F.normalize(last - first, dim=0)
    five = surface(torch.tensor([[0.5, 0.6], [1.2, -0.3], [2.2, 0.6], [0.9, -0.6], [2.4, 0.2]]))
    mean = frechet_mean(metric, alpha * five, rtol=1e-2)
    pairs = {
        "between two rows": (lerp(first, last, 17), path / alpha),
        "beyond the second": (straight_on, on),
        "mean of five rows": (five.mean(0, keepdim=True), mean[None] / alpha),
    }

    print(f"geodesic: {found.status} after {found.num_evals} evaluations")
    print("| distance to the surface | flat | on the manifold |\n|---|---|---|")
    table = {"dimension": dimension, "share": share}
    for name, both in pairs.items():
        flat, curved = (surface.distance(points) for points in both)
        print(f"| {name} | {flat:.3f} | {curved:.3f} |")
        table |= {f"{name}, flat": flat, f"{name}, curved": curved}
    return table


if __name__ == "__main__":
    main()
