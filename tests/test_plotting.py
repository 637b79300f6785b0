"""Figures show the given data, and contact sheets show their frames."""

import PIL.Image
import pytest
import torch

from riemannian_diffusion import EuclideanMetric, Iterate, Metric, lerp, speed
from riemannian_diffusion.plotting import (
    contact_sheet,
    plot_energy,
    plot_plane,
    plot_spectrum,
    plot_speed,
)

ENDS = torch.tensor([0.0, 0.0]), torch.tensor([2.0, 1.0])


class Stretched(Metric):
    """A metric with weight 4 along the second axis, where ellipses are half as long."""

    def inner(self, x, u, v):
        return u[:, 0] * v[:, 0] + 4 * u[:, 1] * v[:, 1]


@pytest.fixture
def axes():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    return figure.subplots()


def test_paths_over_density_and_ellipses(axes):
    path = lerp(*ENDS, 5)
    plot_plane(
        axes,
        {"a": path, "b": path.flip(0)},
        log_prob=lambda x: -x.square().sum(1),
        metric=Stretched(),
        num_ellipses=4,
    )
    assert [line.get_label() for line in axes.lines] == ["a", "b"]
    assert axes.lines[0].get_xydata() == pytest.approx(path.numpy())
    (image,) = axes.images
    shades = image.get_array()
    assert shades.shape == (150, 150) and shades[37, 0] > shades[-1, -1]  # rows are the second axis
    assert len(axes.patches) == 16
    for ellipse in axes.patches:
        assert ellipse.width == pytest.approx(2 * ellipse.height) and ellipse.angle % 180 == 0
    cell = (axes.get_xlim()[1] - axes.get_xlim()[0]) / 4
    assert axes.patches[0].width == pytest.approx(0.7 * cell, rel=1e-6)


def test_paths_outside_the_plane(axes):
    with pytest.raises(ValueError, match=r"\(K, 2\), but 'a' is \(5, 3\)"):
        plot_plane(axes, {"a": torch.zeros(5, 3)})


def test_energies_speeds_and_spectra(axes):
    iterates = [Iterate(torch.zeros(3, 2), 10.0 / i, 2 * i) for i in range(1, 4)]
    plot_energy(axes, {"solve": iterates})
    assert axes.lines[0].get_xydata().tolist() == [[2, 10], [4, 5], [6, pytest.approx(10 / 3)]]
    assert axes.get_yscale() == "log"
    axes.clear()
    plot_energy(axes, {"solve": [*iterates, Iterate(torch.zeros(3, 2), -1.0, 8)]})
    assert axes.lines[0].get_ydata()[-1] == -1 and axes.get_yscale() == "linear"
    axes.clear()
    path = torch.tensor([[0.0, 0], [1, 0], [4, 0]])
    plot_speed(axes, {"path": path}, EuclideanMetric())
    shown = axes.lines[0].get_ydata()
    assert shown == pytest.approx((speed(path) / speed(path).mean()).numpy())
    axes.clear()
    plot_spectrum(axes, torch.tensor([1.0, 0.9, 0.1]), 2)
    values, gap = axes.lines
    assert list(values.get_xdata()) == [1, 2, 3]
    assert list(values.get_ydata()) == pytest.approx([1.0, 0.9, 0.1])
    assert gap.get_xdata() == [2.5, 2.5] and axes.get_title() == "dimension 2"


def test_contact_sheets_pick_frames_evenly():
    frames = [PIL.Image.new("RGB", (8, 6), (10 * i, 0, 0)) for i in range(9)]
    sheet = contact_sheet({"one": frames, "two": frames[::-1]}, 3)
    assert sheet.size == (92 + 24, 12)
    found = [[sheet.getpixel((92 + 8 * x, 6 * y))[0] for x in range(3)] for y in range(2)]
    assert found == [[0, 40, 80], [80, 40, 0]]


@pytest.mark.parametrize("rows, num_columns", [({}, 3), ({"a": []}, 3), ({"a": [None]}, 1)])
def test_bad_sheets(rows, num_columns):
    with pytest.raises(ValueError, match="needs rows of frames and at least 2 columns"):
        contact_sheet(rows, num_columns)
