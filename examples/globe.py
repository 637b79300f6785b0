"""Exponential and logarithm maps, parallel transport and means on the globe.

    python examples/globe.py

Points are (latitude, longitude) in radians, and the metric is that of a sphere in these
coordinates. The example answers four questions. On which course and how far does one travel from
Paris to Tokyo? Where does one arrive on this course? What becomes of an arrow that is moved along
this path without turning? Where should people from four cities meet?
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from riemannian_diffusion import (
    PullbackMetric,
    exponential_map,
    frechet_mean,
    logarithm_map,
    parallel_transport,
)

RADIUS = 6371.0  # km
CITIES = {
    "Paris": (48.86, 2.35),
    "Tokyo": (35.68, 139.69),
    "Nairobi": (-1.29, 36.82),
    "Delhi": (28.61, 77.21),
}


class Globe(PullbackMetric):
    """A sphere in latitude and longitude."""

    def embed(self, x: Tensor) -> Tensor:
        """Points in space `(K, 3)` in km, of latitudes and longitudes `(K, 2)`."""
        latitude, longitude = x.unbind(1)
        flat = latitude.cos()
        return RADIUS * torch.stack(
            [flat * longitude.cos(), flat * longitude.sin(), latitude.sin()], 1
        )


def heading(x: Tensor, v: Tensor) -> float:
    """The compass course of a velocity, in degrees clockwise from north."""
    return math.degrees(math.atan2(float(v[1] * x[0].cos()), float(v[0]))) % 360


def main() -> dict[str, float]:
    """Print the four answers, and return their numbers."""
    metric = Globe()
    points = torch.tensor(list(CITIES.values()), dtype=torch.float64).deg2rad()
    paris, tokyo = points[:2]

    course = logarithm_map(metric, paris, tokyo)
    distance = float(metric.norm(paris[None], course[None]))
    print(f"Paris to Tokyo: {distance:.0f} km, leaving on a course of {heading(paris, course):.1f}")

    path = exponential_map(metric, paris, course)
    missed = float((metric.embed(path[-1:]) - metric.embed(tokyo[None])).norm())
    print(f"following that course for that distance ends {missed:.2f} km from Tokyo")

    east = torch.tensor([0.0, 1.0], dtype=torch.float64)
    arrow = parallel_transport(metric, path, east)[-1]
    print(f"an arrow that points east in Paris arrives on a course of {heading(tokyo, arrow):.1f}")

    mean = frechet_mean(metric, points)
    latitude, longitude = mean.rad2deg().tolist()
    print(f"{', '.join(CITIES)} meet at {latitude:.1f} north, {longitude:.1f} east")
    return {
        "distance": distance,
        "course": heading(paris, course),
        "missed": missed,
        "arrow": heading(tokyo, arrow),
        "latitude": latitude,
        "longitude": longitude,
    }


if __name__ == "__main__":
    main()
