"""Plots of paths, energies, speeds and spectra on matplotlib axes, and contact sheets of frames.

The plots need `pip install 'riemannian-diffusion[plot]'`; `contact_sheet` needs only Pillow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import PIL.Image
import PIL.ImageDraw
import torch
from torch import Tensor

from riemannian_diffusion.geodesics import Iterate
from riemannian_diffusion.metrics import Metric
from riemannian_diffusion.paths import speed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABEL_WIDTH = 92  # width in pixels of the column of names on a contact sheet


def plot_plane(
    axes: Axes,
    paths: Mapping[str, Tensor],
    *,
    log_prob=None,
    metric: Metric | None = None,
    num_ellipses: int = 12,
    ellipse_size: float = 0.35,
    margin: float = 0.25,
) -> None:
    """Plot paths in the plane, on top of a density and of the unit balls of a metric.

    Args:
        axes: The axes on which to draw.
        paths: Paths `(K, 2)` by name.
        log_prob: Log-density `(N, 2) -> (N,)`. Its exponential is drawn in shades of grey.
        metric: A metric, whose unit balls `<v, v>_x <= 1` are drawn as ellipses on a grid. A step
            from the centre of an ellipse to its rim costs the same in every direction. All ellipses
            have one scale, but those that are longer than their cell are drawn shorter.
        num_ellipses: Number of ellipses along each axis.
        ellipse_size: Median half length of the ellipses, in cells of the grid.
        margin: Margin around the paths, as a share of their extent.

    Raises:
        ValueError: If a path does not lie in the plane.

    Examples:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> from riemannian_diffusion import lerp
        >>> from riemannian_diffusion.plotting import plot_plane
        >>> axes = Figure().subplots()
        >>> line = lerp(torch.zeros(2), torch.ones(2), 5)
        >>> plot_plane(axes, {'line': line})
    """
    for name, path in paths.items():
        if path.ndim != 2 or path.shape[1] != 2:
            raise ValueError(f"`paths` must be (K, 2), but {name!r} is {tuple(path.shape)}.")
    like = next(iter(paths.values()))
    points = torch.cat([path.detach().cpu().double() for path in paths.values()])
    low, high = points.amin(0), points.amax(0)
    centre, half = (low + high) / 2, (high - low).max() * (0.5 + margin)
    (left, bottom), (right, top) = (centre - half).tolist(), (centre + half).tolist()
    if log_prob is not None:
        density = log_prob(_grid(centre, half, 150).to(like)).exp().view(150, 150).cpu()
        extent = (left, right, bottom, top)
        axes.imshow(density.T.numpy(), origin="lower", extent=extent, cmap="Greys", alpha=0.6)
    if metric is not None:
        _plot_ellipses(axes, metric, centre, half, num_ellipses, ellipse_size, like)
    for name, path in paths.items():
        axes.plot(
            *path.detach().cpu().double().T.numpy(), ".-", linewidth=1.5, markersize=4, label=name
        )
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    axes.set_aspect("equal")
    axes.legend(fontsize=8)


def _plot_ellipses(axes, metric: Metric, centre, half, num: int, size: float, like) -> None:
    from matplotlib.patches import Ellipse

    at = _grid(centre, half * (1 - 1 / num), num)
    with torch.no_grad():
        matrices = metric.as_matrix(at.to(like)).cpu().double()
    values, vectors = torch.linalg.eigh(matrices)
    radii = values.clamp(min=1e-12).rsqrt()  # (N, 2), in falling order
    cell = float(2 * half / num)
    drawn = (radii * cell * size / radii[:, 0].median()).clamp(max=cell / 2)
    for place, (long, short), axis in zip(at, drawn, vectors[:, :, 0], strict=True):
        angle = float(torch.rad2deg(torch.atan2(axis[1], axis[0])))
        diameters = 2 * float(long), 2 * float(short)
        patch = Ellipse(place.tolist(), *diameters, angle=angle, fill=False, color="tab:blue")
        patch.set(alpha=0.6, linewidth=0.8)
        axes.add_patch(patch)


def plot_energy(axes: Axes, solves: Mapping[str, Sequence[Iterate]]) -> None:
    """Plot the optimised energy of solves against their number of evaluations.

    The scale is logarithmic if all energies are positive.

    Args:
        axes: The axes on which to draw.
        solves: Iterates of each solve, by its name.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import GaussianMixtureScore
        >>> from riemannian_diffusion import TangentNormalMetric
        >>> from riemannian_diffusion import geodesic
        >>> angles = torch.arange(64) * 2 * torch.pi / 64
        >>> circle = torch.stack([angles.cos(), angles.sin()], 1)
        >>> score = GaussianMixtureScore(circle, 0.2)
        >>> metric = TangentNormalMetric(score)
        >>> from matplotlib.figure import Figure
        >>> from riemannian_diffusion.plotting import plot_energy
        >>> seen = []
        >>> _ = geodesic(metric, circle[0], circle[9], callback=seen.append)
        >>> plot_energy(Figure().subplots(), {'path L-BFGS': seen})
    """
    for name, iterates in solves.items():
        counts, energies = [i.num_evals for i in iterates], [i.energy for i in iterates]
        axes.plot(counts, energies, label=name)
    if all(i.energy > 0 for iterates in solves.values() for i in iterates):
        axes.set_yscale("log")
    axes.set_xlabel("evaluations of energy and gradient")
    axes.set_ylabel("energy")
    axes.legend(fontsize=8)


def plot_speed(axes: Axes, paths: Mapping[str, Tensor], metric: Metric | None = None) -> None:
    """Plot the speed along paths, divided by its mean.

    A path that is evenly paced has the value 1 everywhere.

    Args:
        axes: The axes on which to draw.
        paths: Paths `(K, *shape)` by name.
        metric: The metric that measures the speed; None measures in flat space.

    Examples:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> from riemannian_diffusion import lerp
        >>> from riemannian_diffusion.plotting import plot_speed
        >>> axes = Figure().subplots()
        >>> line = lerp(torch.zeros(2), torch.ones(2), 5)
        >>> plot_speed(axes, {'line': line})
    """
    for name, path in paths.items():
        with torch.no_grad():
            values = speed(path, metric).cpu()
        u = (torch.arange(len(values)) + 0.5) / len(values)
        axes.step(u.numpy(), (values / values.mean()).double().numpy(), where="mid", label=name)
    axes.set_xlabel("fraction of the path")
    axes.set_ylabel("speed over its mean")
    axes.legend(fontsize=8)


def plot_spectrum(axes: Axes, values: Tensor, dimension: int | None = None) -> None:
    """Plot the singular values of a denoiser's Jacobian.

    Args:
        axes: The axes on which to draw.
        values: Singular values `(rank,)` of one point, in falling order.
        dimension: Dimension of the manifold; a line is drawn after it. None draws no line.

    Examples:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> from riemannian_diffusion.plotting import plot_spectrum
        >>> axes = Figure().subplots()
        >>> plot_spectrum(axes, torch.tensor([1.0, 0.9, 0.1]), 2)
    """
    axes.plot(range(1, len(values) + 1), values.cpu().double().numpy(), "o-", markersize=4)
    if dimension is not None:
        axes.axvline(dimension + 0.5, color="tab:red", linestyle="--", linewidth=1)
        axes.set_title(f"dimension {dimension}")
    axes.set_xlabel("index")
    axes.set_ylabel("singular value")
    axes.set_ylim(bottom=0)


def contact_sheet(
    rows: Mapping[str, Sequence[PIL.Image.Image]], num_columns: int
) -> PIL.Image.Image:
    """Draw rows of evenly picked frames, with the name of each row on the left.

    Args:
        rows: Frames by the name of their row; all frames have one size.
        num_columns: Number of frames shown in each row, at least 2.

    Returns:
        The sheet as one RGB image.

    Raises:
        ValueError: If there are no frames or fewer than 2 columns.

    Examples:
        >>> from PIL import Image
        >>> from riemannian_diffusion.plotting import contact_sheet
        >>> frames = [Image.new('RGB', (8, 8))] * 3
        >>> contact_sheet({'black': frames}, 2).mode
        'RGB'
    """
    if not rows or not all(rows.values()) or num_columns < 2:
        raise ValueError(
            "A contact sheet needs rows of frames and at least 2 columns, "
            f"but got {len(rows)} rows and `num_columns`={num_columns}."
        )
    width, height = next(iter(rows.values()))[0].size
    size = LABEL_WIDTH + num_columns * width, len(rows) * height
    canvas = PIL.Image.new("RGB", size, "white")
    draw = PIL.ImageDraw.Draw(canvas)
    for y, (name, frames) in enumerate(rows.items()):
        draw.text((4, y * height + height // 2 - 6), name, fill="black")
        for x in range(num_columns):
            frame = frames[round(x * (len(frames) - 1) / (num_columns - 1))]
            canvas.paste(frame, (LABEL_WIDTH + x * width, y * height))
    return canvas


def _grid(centre: Tensor, half: Tensor, num: int) -> Tensor:
    """Points `(num^2, 2)` of a square grid; the second coordinate changes fastest."""
    line = torch.linspace(-1, 1, num, dtype=torch.float64) * half
    return centre + torch.cartesian_prod(line, line)
