from __future__ import annotations

import ast
import dataclasses
import json
import math
import sys
import urllib.error
import warnings
from pathlib import Path

import intervals
import numpy as np
import PIL.Image
import pytest
import scipy.linalg
import scipy.stats
import torch
from models import rand, randn
from skimage import metrics as skimage_metrics
from torch.testing import assert_close
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

import riemannian_diffusion
from riemannian_diffusion import evaluation as ev
from riemannian_diffusion.cli import main
from riemannian_diffusion.cli.options.evaluate import PROTOCOL_NAMES

GAPS = torch.tensor([[0.3, 0.1, 0.4, 0.15], [0.2, 0.2, 0.2, 0.2]], dtype=torch.float64)
OFFLINE = "no route to the host"


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path_factory):
    """No weights are on disk, and none can be downloaded."""

    def refuse(*args, **kwargs):
        raise urllib.error.URLError(OFFLINE)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch_home")))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


def rms(x, y):
    """The root mean square difference, a distance that needs no network."""
    return (x - y).square().flatten(1).mean(1).sqrt()


def colours(x):
    """Means and spreads of the three channels, features that need no network."""
    return torch.cat([x.mean((2, 3)), x.std((2, 3))], 1)


def sequence(name="a", num_frames=5, size=12, seed=0, inputs=False, truth=False):
    frames = rand(num_frames, 3, size, size, seed=seed)
    return ev.FrameSequence(
        name,
        frames,
        rand(2, 3, size, size, seed=1000 + seed) if inputs else None,
        rand(num_frames - 2, 3, size, size, seed=2000 + seed) if truth else None,
    )


def sequences(count, **options):
    return [sequence(f"s{i}", seed=i, **options) for i in range(count)]


def run(given, protocol="any", **options):
    """The result of `evaluate` without networks. Its warnings are in the result only."""
    options = {"distance": rms, "features": colours, "num_resamples": 20} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return ev.evaluate(given, protocol, **options)


def variant(of, **changes):
    return dataclasses.replace(ev.PROTOCOLS[of], **changes)


# ------------------------------------------------------------------------------- gaps of a sequence


def test_measures_of_gaps_against_numpy():
    array = GAPS.numpy()
    assert_close(ev.ppl(GAPS).numpy(), array.sum(1))
    assert_close(ev.consistency(GAPS).numpy(), array.mean(1))
    assert_close(ev.pdv_variance(GAPS).numpy(), np.var(array, axis=1, ddof=0))
    assert_close(ev.pdv_std(GAPS).numpy(), np.std(array, axis=1, ddof=0))
    for gaps, value in zip(array, ev.smoothness(GAPS).tolist(), strict=True):
        gini = np.abs(gaps[:, None] - gaps).sum() / (2 * len(gaps) ** 2 * gaps.mean())
        assert value == pytest.approx(1 - gini, abs=1e-12)


@pytest.mark.parametrize(
    ("gaps", "expected"), [([2.0] * 5, 1), ([0, 0, 7.0, 0], 0.25), ([0.0, 0, 0], 1), ([3.0], 1)]
)
def test_smoothness_at_its_ends(gaps, expected):
    assert float(ev.smoothness(torch.tensor(gaps))) == pytest.approx(expected)


def test_measures_of_gaps_under_scaling_and_reordering():
    for measure, power in (
        (ev.ppl, 1),
        (ev.consistency, 1),
        (ev.pdv_variance, 2),
        (ev.pdv_std, 1),
        (ev.smoothness, 0),
    ):
        assert_close(measure(3 * GAPS), 3**power * measure(GAPS))
        assert_close(measure(GAPS[:, [2, 0, 3, 1]]), measure(GAPS))


def test_gaps_are_distances_of_neighbours_in_any_batches():
    frames = rand(6, 3, 8, 8)
    expected = torch.stack([rms(frames[i : i + 1], frames[i + 1 : i + 2])[0] for i in range(5)])
    for size in (1, 2, 8):
        assert_close(ev.adjacent_distances(frames, rms, max_batch_size=size), expected)
    assert_close(ev.adjacent_distances(frames.flip(0), rms), expected.flip(0))
    assert_close(ev.largest_step(frames), expected.max())


# ------------------------------------------------------------------------------ image against image


def test_image_measures_against_skimage():
    x = rand(3, 3, 21, 17)
    y = (x + 0.2 * randn(3, 3, 21, 17, seed=1)).clamp(0, 1)
    found = [ev.mse(x, y), ev.rmse(x, y), ev.psnr(x, y), ev.ssim(x, y)]
    for i, (a, b) in enumerate(zip(x.numpy(), y.numpy(), strict=True)):
        similarity = skimage_metrics.structural_similarity(
            a,
            b,
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        expected = [
            skimage_metrics.mean_squared_error(a, b),
            skimage_metrics.mean_squared_error(a, b) ** 0.5,
            skimage_metrics.peak_signal_noise_ratio(a, b, data_range=1.0),
            similarity,
        ]
        assert [float(values[i]) for values in found] == pytest.approx(expected, rel=1e-5)


def test_image_measures_of_equal_images():
    x = rand(2, 3, 12, 12)
    assert ev.mse(x, x).tolist() == [0, 0]
    assert ev.psnr(x, x).tolist() == [math.inf, math.inf]
    assert_close(ev.ssim(x, x), torch.ones(2, dtype=torch.float64))


# -------------------------------------------------------------------------------- set against set


def with_moments(num, mean, covariance, seed=0):
    """Features whose sample mean and sample covariance are exactly these."""
    x = randn(num, len(mean), seed=seed)
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (num - 1))).T
    return white @ torch.linalg.cholesky(covariance).T + mean


def scipy_frechet(x, y):
    x, y = x.numpy(), y.numpy()
    cov_x, cov_y = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(cov_x @ cov_y)
    shift = x.mean(0) - y.mean(0)
    return shift @ shift + np.trace(cov_x + cov_y - 2 * np.real(root))


def frechet(x, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return ev.frechet_distance(x, y)


@pytest.mark.parametrize(("n", "m", "d"), [(40, 30, 6), (9, 30, 12), (7, 5, 12), (40, 6, 6)])
def test_frechet_distance_against_scipy(n, m, d):
    x, y = randn(n, d), 0.5 * randn(m, d, seed=1) @ randn(d, d, seed=2) + 0.3
    # the root of a singular product has the square root of the rounding error
    tolerance = 1e-9 if min(n, m) > d else 1e-5
    assert float(frechet(x, y)) == pytest.approx(scipy_frechet(x, y), rel=tolerance)


def test_frechet_distance_of_gaussian_features_in_closed_form():
    mean_x, mean_y = torch.zeros(4).double(), torch.tensor([1.0, -2, 0, 0.5]).double()
    x = with_moments(30, mean_x, torch.diag(torch.tensor([4.0, 1, 9, 0.25]).double()))
    y = with_moments(50, mean_y, torch.diag(torch.tensor([1.0, 1, 4, 2.25]).double()), seed=1)
    assert float(frechet(x, y)) == pytest.approx((1 + 4 + 0.25) + (1 + 0 + 1 + 1), rel=1e-10)
    # samples have a sampling error
    x, y = 2 * randn(20000, 4), 0.5 * randn(20000, 4, seed=1) + mean_y
    assert float(ev.frechet_distance(x, y)) == pytest.approx(5.25 + 4 * 1.5**2, rel=0.03)


def test_frechet_distance_against_torchmetrics():
    x, y = randn(25, 5), randn(30, 5, seed=1) + 0.2
    reference = FrechetInceptionDistance(feature=torch.nn.Identity(), input_img_size=(5,))
    reference.update(x, real=True)
    reference.update(y, real=False)
    assert float(frechet(x, y)) == pytest.approx(float(reference.compute()), rel=1e-6)


@pytest.mark.parametrize("n", [4, 40])
def test_symmetries_of_the_frechet_distance(n):
    x, y = randn(n, 6), 2 * randn(25, 6, seed=1) - 1
    value = frechet(x, y)
    turn = torch.linalg.qr(randn(6, 6, seed=2)).Q
    assert_close(frechet(y, x), value)
    assert_close(frechet(x.flip(0), y), value)
    assert_close(frechet(x @ turn + 5, y @ turn + 5), value)
    assert_close(frechet(3 * x, 3 * y), 9 * value)
    assert float(frechet(x, x)) == pytest.approx(0, abs=1e-12)


def test_kernel_distance_against_torchmetrics_and_by_definition():
    x, y = randn(12, 5), randn(12, 5, seed=1) + 0.5
    assert_close(ev.kernel_distance(x, y), poly_mmd(x, y))
    y = y[:7]  # sets of unequal size

    def kernel(a, b):
        return float(a @ b / 5 + 1) ** 3

    expected = np.mean([kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    expected += np.mean([kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    expected -= 2 * np.mean([kernel(a, b) for a in x for b in y])
    assert float(ev.kernel_distance(x, y)) == pytest.approx(expected, rel=1e-10)
    assert_close(ev.kernel_distance(y, x), ev.kernel_distance(x, y))


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.6, 1.3)])
def test_kernel_distance_of_gaussian_features_in_closed_form(mean, std):
    # on the line E (x y + 1)^3 = sum over k of binomial(3, k) E x^k E y^k
    moments = np.array([mean, mean**2 + std**2, mean**3 + 3 * mean * std**2])
    expected = float(np.array([3, 3, 1]) @ (moments - np.array([0, 1, 0])) ** 2)
    found = []
    for i in range(50):
        x, y = std * randn(300, 1, seed=2 * i) + mean, randn(400, 1, seed=2 * i + 1)
        found.append(float(ev.kernel_distance(x, y)))
    error = np.std(found) / np.sqrt(len(found))
    assert error < 0.05 * (1 + expected)
    assert abs(np.mean(found) - expected) < 4 * error


def test_a_set_too_small_for_fid_is_reported():
    with pytest.warns(UserWarning, match="FID of 19 images against 40 .* 4 features .* least 20"):
        ev.frechet_distance(randn(19, 4), randn(40, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ev.frechet_distance(randn(20, 4), randn(40, 4))
        ev.kernel_distance(randn(3, 4), randn(3, 4))


# ---------------------------------------------------------------------------------------- intervals


def test_interval_of_many_values_is_the_normal_one():
    values = randn(400, seed=3)
    low, high = ev.mean_interval(values)
    half = 1.96 * float(values.std()) / 20
    assert [low, high] == pytest.approx(
        [float(values.mean()) - half, float(values.mean()) + half], abs=0.1 * half
    )


def test_interval_of_values_without_skewness_is_students():
    values = torch.tensor([-3.0, -1, 0, 1, 3], dtype=torch.float64) + 2
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert ev.mean_interval(values, confidence=0.9) == pytest.approx(tuple(expected))


def test_interval_of_a_mean_moves_with_its_values():
    values = torch.tensor([0.1, 0.2, 0.3, 1.5], dtype=torch.float64)
    low, high = ev.mean_interval(values)
    mean = float(values.mean())
    assert high - mean > mean - low > 0  # the distribution has its tail on the right
    assert ev.mean_interval(3 * values + 1) == pytest.approx((3 * low + 1, 3 * high + 1))
    assert ev.mean_interval(-values) == pytest.approx((-high, -low))
    assert ev.mean_interval(torch.full((4,), 0.5)) == (0.5, 0.5)
    assert ev.mean_interval(torch.full((7,), 0.1, dtype=torch.float64)) == (0.1, 0.1)


@pytest.mark.parametrize("scale", [1e-18, 1e14, 1e30])
def test_interval_of_a_mean_has_the_scale_of_its_values(scale):
    values = torch.tensor([1.0, 2, 4, 9])
    expected = [scale * end for end in ev.mean_interval(values)]
    assert ev.mean_interval(scale * values) == pytest.approx(expected, rel=1e-5)
    assert ev.mean_interval(values.half()) == pytest.approx(ev.mean_interval(values))


def test_intervals_shrink_with_items_and_widen_with_confidence():
    def widths(num_items, confidence=0.95):
        x = randn(num_items)
        ends = [
            ev.mean_interval(x, confidence=confidence),
            ev.jackknife_interval(lambda index: x[index].mean(), num_items, confidence=confidence),
        ]
        return torch.tensor([high - low for low, high in ends])

    ratio = widths(50) / widths(200)
    assert (1.6 < ratio).all() and (
        ratio < 2.5
    ).all()  # the width falls as one over the square root of the number
    assert (widths(50, 0.5) < widths(50, 0.9)).all() and (widths(50, 0.9) < widths(50, 0.99)).all()


def test_jackknife_of_a_mean_is_students_interval():
    x = randn(12, seed=2) + 40  # so large that the shift does not matter
    low, high = ev.jackknife_interval(lambda index: x[index].mean(), 12)
    expected = scipy.stats.ttest_1samp(x, 0).confidence_interval()
    assert high - low == pytest.approx(expected.high - expected.low)
    assert [low, high] == pytest.approx(list(expected), abs=0.02)


def test_jackknife_repeats_no_sequence_and_takes_pairs_by_its_seed():
    asked = []

    def statistic(index):
        asked.append(index.tolist())
        return x[index].mean() ** 2

    x = randn(9, seed=5) + 1
    first = ev.jackknife_interval(statistic, 9, num_pairs=6, seed=1)
    assert all(len(set(index)) == len(index) for index in asked)
    assert sorted(map(len, asked)) == [7] * 6 + [8] * 9 + [9]
    assert ev.jackknife_interval(statistic, 9, num_pairs=6, seed=1) == first
    assert ev.jackknife_interval(statistic, 9, num_pairs=6, seed=2) != first


def test_jackknife_variance_of_a_statistic_of_pairs():
    # mean of x_i . x_j over pairs: the plain jackknife gives twice the variance 2 d / (n (n - 1))
    def of(x):
        return lambda index: (
            (x[index].sum(0).square().sum() - x[index].square().sum())
            / (len(index) * (len(index) - 1))
        )

    quantile = scipy.stats.t.ppf(0.975, 11)
    ends = [ev.jackknife_interval(of(randn(12, 20, seed=seed)), 12) for seed in range(100)]
    found = np.mean([((high - low) / (2 * quantile)) ** 2 for low, high in ends])
    assert 0.75 < found / (2 * 20 / (12 * 11)) < 1.4


def test_intervals_of_means_cover():
    for population, least in (("normal", 0.91), ("exponential", 0.88)):
        draw, expected, _ = intervals.POPULATIONS[population]
        generator = torch.Generator().manual_seed(0)
        for num in (3, 5, 10):
            ends = [ev.mean_interval(draw(num, generator)) for _ in range(400)]
            covered = np.mean([low <= expected <= high for low, high in ends])
            assert least - 0.02 * (num == 3) < covered < 0.985


def test_intervals_of_fid_and_kid_cover_and_have_the_true_width(monkeypatch):
    monkeypatch.setattr(intervals, "NUM_DRAWS", 300)
    monkeypatch.setattr(intervals, "NUM_RESAMPLES", 50)
    rows = list(intervals.sets(25, seed=1, cases=("one distribution",), nums=(8,)))
    new = [row for row in rows if row["method"] == "new"]
    assert [row["measure"] for row in new] == ["fid", "kid"]
    for row in new:
        assert row["coverage"] >= 0.85 and 0.75 < row["width"] < 1.25
    for row in rows:  # the old intervals cover too rarely
        assert row["method"] == "new" or row["width"] > 1.2


# ---------------------------------------------------------------------------------------- backbones


@pytest.fixture
def random_lpips():
    """LPIPS with a random trunk and the trained weights of the layers."""
    lpips = pytest.importorskip("lpips", reason="lpips needs a torchvision of this torch")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)


def lpips_by_definition(network, x, y):
    """Zhang et al. (2018): weighted squared differences of unit features, summed over layers."""
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    total = 0
    for fx, fy, layer in zip(
        network.net(((2 * x - 1) - shift) / scale),
        network.net(((2 * y - 1) - shift) / scale),
        network.lins,
        strict=True,
    ):
        weights = layer.model[-1].weight.flatten()[:, None, None]
        difference = torch.nn.functional.normalize(fx) - torch.nn.functional.normalize(fy)
        total = total + (weights * difference.square()).sum(1).mean((1, 2))
    return total


def test_lpips_against_its_package_and_its_definition(random_lpips):
    x, y = rand(3, 3, 32, 32).float(), rand(3, 3, 32, 32, seed=1).float()
    distance = ev.lpips_distance(random_lpips)
    found = distance(x, y)
    assert found.shape == (3,) and not found.requires_grad
    assert_close(found, random_lpips(x, y, normalize=True).flatten().detach())
    assert_close(found, lpips_by_definition(random_lpips, x, y).detach())
    assert_close(distance(x.double(), y.double()), found)
    assert distance(x, x).tolist() == [0, 0, 0]
    assert distance.name == "LPIPS (passed in)"
    assert_close(ev.adjacent_distances(x, distance), distance(x[:-1], x[1:]).double())


def test_lpips_loads_the_trunk_on_disk(random_lpips):
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(1)
    trunk = torchvision.models.squeezenet1_1().state_dict()
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(trunk, folder / "squeezenet1_1-b8a52dc0.pth")
    distance = ev.lpips_distance("squeeze")
    assert distance.name == "LPIPS squeeze 0.1"
    loaded = distance.network.net.state_dict()
    assert any(torch.equal(trunk["features.0.weight"], value) for value in loaded.values())
    with pytest.raises(ValueError, match="LPIPS squeeze 0.1 needs images of at least 17 pixels"):
        distance(torch.zeros(1, 3, 16, 40), torch.zeros(1, 3, 16, 40))


@pytest.mark.parametrize("network", ["alex", "vgg", "squeeze"])
def test_every_lpips_network_takes_its_least_size(random_lpips, network, capsys):
    import lpips

    from riemannian_diffusion.measures.networks import LPIPS_NETWORKS

    side, file = LPIPS_NETWORKS[network]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with torch.device("meta"):
            net = lpips.LPIPS(net=network, pnet_rand=True, pretrained=False, verbose=False)
        net.to("meta")
    image = torch.zeros(1, 3, side, side, device="meta")
    assert net(image, image).shape == (1, 1, 1, 1)
    with pytest.raises(RuntimeError):
        net(image[..., 1:], image[..., 1:])
    with pytest.raises(OSError, match=f"LPIPS {network} 0.1 needs the file {file}.*{OFFLINE}"):
        ev.lpips_distance(network)
    line = f"riemannian-diffusion: downloading {file} for LPIPS {network} 0.1 ...\n"
    assert capsys.readouterr() == ("", line)  # none of the download's own lines


def test_a_broken_file_of_weights_is_named(random_lpips):
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "squeezenet1_1-b8a52dc0.pth").write_bytes(b"cut off")
    with pytest.raises(OSError, match="squeezenet1_1-b8a52dc0.pth, which could not be loaded"):
        ev.lpips_distance("squeeze")


def test_inception_against_torchmetrics(monkeypatch):
    pytest.importorskip("torchvision", reason="torch-fidelity needs a torchvision of this torch")
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    with pytest.raises(OSError, match="weights-inception-2015-12-05-6726825d.pth"):
        ev.inception_features()
    monkeypatch.setattr(fidelity, "load_state_dict_from_url", lambda *args, **kwargs: {})
    monkeypatch.setattr(
        fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None
    )
    torch.manual_seed(0)
    features = ev.inception_features()
    assert features.name == "Inception-v3 2048 (torchmetrics)"
    x, y = (rand(2, 3, 16, 16, seed=i).mul(255).round().div(255).float() for i in (0, 1))
    found = [features(images) for images in (x, y)]
    assert found[0].shape == (2, 2048)
    reference = FrechetInceptionDistance(feature=features.network, input_img_size=(3, 16, 16))
    reference.update((x * 255).round().byte(), real=True)
    reference.update((y * 255).round().byte(), real=False)
    shift = reference.real_features_sum - reference.fake_features_sum
    assert_close((found[0] - found[1]).sum(0).double(), shift)


def test_custom_features_receive_uint8_images():
    class Corner(torch.nn.Module):
        def forward(self, x):
            assert x.dtype == torch.uint8
            return x[:, :, 0, 0].float()

    x = torch.arange(0, 240).view(5, 3, 4, 4) / 255
    features = ev.inception_features(Corner())
    assert_close(features(x), 255 * x[:, :, 0, 0])
    assert features.name == "Corner (passed in)"


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("lpips", lambda: ev.lpips_distance("alex")),
        ("torchmetrics.functional.image", lambda: ev.psnr(rand(1, 3, 12, 12), rand(1, 3, 12, 12))),
        ("torchmetrics.functional.image", lambda: ev.ssim(rand(1, 3, 12, 12), rand(1, 3, 12, 12))),
        ("torchmetrics.image.kid", lambda: ev.kernel_distance(randn(3, 2), randn(3, 2))),
        ("torchmetrics.image.fid", ev.inception_features),
        ("torch_fidelity", ev.inception_features),
        ("scipy.stats", lambda: ev.mean_interval(randn(4))),
        ("scipy.stats", lambda: ev.jackknife_interval(torch.sum, 5)),
        ("scipy.stats", lambda: run(sequences(3), variant("any", measures=("largest_step",)))),
    ],
)
def test_a_missing_library_says_what_to_install(monkeypatch, module, call):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'riemannian-diffusion\[eval\]'"):
        call()


# ---------------------------------------------------------------------------------------- protocols


def test_every_measure_of_an_evaluation_is_what_its_function_gives():
    given = sequences(4, inputs=True, truth=True)
    result = run(given)
    assert not result.missing and [r.measure for r in result.results] == list(ev.MEASURES)
    gaps = torch.stack([ev.adjacent_distances(s.frames, rms) for s in given])
    middle = [(s.frames[1:-1], s.truth) for s in given]
    expected = {
        name: getattr(ev, name)(gaps)
        for name in ("ppl", "pdv_variance", "pdv_std", "smoothness", "consistency")
    }
    for name in ("mse", "psnr", "ssim"):
        expected[name] = torch.stack([getattr(ev, name)(x, y).mean() for x, y in middle])
    expected["lpips"] = torch.stack([rms(x, y).mean() for x, y in middle])
    expected["re"] = torch.stack([ev.mse(s.frames[[0, -1]], s.inputs).mean() for s in given])
    expected["largest_step"] = gaps.max(
        1
    ).values  # this measure uses the root mean square difference
    for name, values in expected.items():
        assert result[name].value == pytest.approx(float(values.mean()), rel=1e-9)
        assert result[name].per_sequence == pytest.approx(values.tolist(), rel=1e-9)
        assert result[name].sets == "4 sequences of 5 frames"
    interior = colours(torch.cat([s.frames[1:-1] for s in given]))
    inputs = colours(torch.cat([s.inputs for s in given]))
    assert result["fid"].value == pytest.approx(float(frechet(interior, inputs)), rel=1e-9)
    kid = float(ev.kernel_distance(interior, inputs))
    assert result["kid"].value == pytest.approx(kid, rel=1e-9)
    assert result["fid"].sets == "12 interior frames against 8 inputs"


def test_fid_in_the_span_of_its_features_is_fid():
    wide = sequences(3, inputs=True)
    result = run(wide, features=lambda x: x.flatten(1))  # 432 features of 15 images
    interior = torch.cat([s.frames[1:-1] for s in wide]).flatten(1)
    inputs = torch.cat([s.inputs for s in wide]).flatten(1)
    assert result["fid"].value == pytest.approx(float(frechet(interior, inputs)), rel=1e-9)


def test_without_inputs_fid_compares_with_the_first_and_last_frames():
    given = sequences(4)
    result = run(given, "aid")
    interior = colours(torch.cat([s.frames[1:-1] for s in given]))
    ends = colours(torch.cat([s.frames[[0, -1]] for s in given]))
    assert result["fid"].value == pytest.approx(float(frechet(interior, ends)), rel=1e-9)
    assert result["fid"].sets == "12 interior frames against 8 first and last frames"


def test_random_frames_of_fid():
    protocol = variant("diffmorpher17", resolution=None)
    given = sequences(3, num_frames=17, inputs=True)
    result = run(given, protocol)
    assert result["fid"].sets == (
        "6 random frames (2 of each sequence, mean of 10 draws) against 6 inputs"
    )
    assert run(given, protocol).as_dict() == result.as_dict()
    assert run(given, protocol, seed=1)["fid"].value != result["fid"].value
    # all frames drawn: every draw is the whole set
    inputs = colours(torch.cat([s.inputs for s in given]))
    whole = colours(torch.cat([s.frames for s in given]))
    drawn = run(given, variant("diffmorpher17", resolution=None, num_sampled=17, num_draws=2))
    assert drawn["fid"].value == pytest.approx(float(frechet(whole, inputs)), rel=1e-9)
    # frames that are all alike: every draw is one set
    still = [dataclasses.replace(s, frames=s.frames[:1].expand(17, -1, -1, -1)) for s in given]
    pairs = colours(torch.cat([s.frames[:2] for s in still]))
    found = run(still, protocol)
    assert found["fid"].value == pytest.approx(float(frechet(pairs, inputs)), rel=1e-9)
    kid = float(ev.kernel_distance(pairs, inputs))
    assert found["kid"].value == pytest.approx(kid, rel=1e-9)


def test_numbers_do_not_depend_on_order_batches_or_kind_of_pixels():
    given = [
        dataclasses.replace(s, frames=(255 * s.frames).byte(), inputs=(255 * s.inputs).byte())
        for s in sequences(4, inputs=True)
    ]
    floats = [
        dataclasses.replace(s, frames=s.frames.float() / 255, inputs=s.inputs.float() / 255)
        for s in given
    ]
    expected = {r.measure: r.value for r in run(given).results}
    for other in (run(given[::-1]), run(given, max_batch_size=1), run(floats)):
        assert {r.measure: r.value for r in other.results} == pytest.approx(expected, rel=1e-6)


def test_every_number_names_its_protocol():
    result = run(sequences(2, num_frames=11, size=12), variant("saito11", resolution=(12, 12)))
    assert {r.measure for r in result.results} == {"fid", "kid", "ppl", "pdv_std", "largest_step"}
    for row in result.as_dict()["results"].values():
        assert row["protocol"] == "saito11" and row["num_sequences"] == 2
        assert row["num_frames"] == 11 and row["resolution"] == (12, 12)
        assert {"definition", "range", "direction", "sets", "interval"} <= set(row)
    assert result["ppl"].backbone == "rms (passed in)"
    assert result["kid"].backbone == "colours (passed in)"
    assert result["largest_step"].backbone is None
    lines = result.table().splitlines()
    assert lines[0] == "protocol saito11: 2 sequences of 11 frames, 12 x 12 px, seed 0"
    (row,) = [line for line in lines if line.startswith("ppl")]
    assert row.endswith("lower   2 sequences of 11 frames; rms (passed in)")
    assert "missing re: the sequences come without their input images" in lines
    assert "missing lpips, mse, psnr, ssim: the" in run(sequences(2, inputs=True)).table()


def test_intervals_of_an_evaluation():
    given = sequences(6, inputs=True)
    result = run(given, num_resamples=9, seed=3, confidence=0.8)
    values = torch.tensor(result["ppl"].per_sequence, dtype=torch.float64)
    assert result["ppl"].interval == ev.mean_interval(values, confidence=0.8)
    interior = torch.stack([colours(s.frames[1:-1]) for s in given])
    inputs = torch.stack([colours(s.inputs) for s in given])

    def kid(index):
        return ev.kernel_distance(interior[index].flatten(0, 1), inputs[index].flatten(0, 1))

    expected = ev.jackknife_interval(kid, 6, num_pairs=9, seed=3, confidence=0.8)
    assert result["kid"].interval == pytest.approx(expected)
    for row in result.results:
        low, high = row.interval
        measure = ev.MEASURES[row.measure]
        assert measure.low <= low <= row.value <= high <= measure.high
    assert all(row.interval is None for row in run(given, num_resamples=0).results)


@pytest.mark.parametrize(
    ("num", "has_means", "has_sets"), [(1, False, False), (2, False, False), (3, True, False)]
)
def test_too_few_sequences_have_no_intervals(num, has_means, has_sets):
    result = run(sequences(num, num_frames=6), "aid")
    assert all(
        (row.interval is not None) == (has_means if row.per_sequence else has_sets)
        for row in result.results
    )
    assert f"FID and KID have no interval: they need 5 sequences, not {num}." in result.warnings
    said = f"Means have no interval: they need 3 sequences, not {num}." in result.warnings
    assert said is not has_means


def test_without_scipy_there_are_no_intervals(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    result = run(sequences(5), skip_missing=True)
    assert result.results and all(row.interval is None for row in result.results)
    assert result.warnings[-1].startswith("There are no intervals: scipy cannot be imported")
    assert not any("scipy" in text for text in run(sequences(5), num_resamples=0).warnings)


def test_the_note_on_published_values():
    given = sequences(2, num_frames=17, inputs=True)
    result = run(given, variant("diffmorpher17", resolution=None))
    note = ev.PROTOCOLS["diffmorpher17"].note
    assert "multiply ppl by 16 and pdv_variance by 65536" in note
    assert f"note: {note}" in result.table().splitlines()
    assert result.as_dict()["protocol"]["note"] == note
    gaps = torch.stack([ev.adjacent_distances(s.frames, rms) for s in given])
    assert_close(16 * ev.ppl(gaps), (256 * gaps).mean(1))
    assert_close(65536 * ev.pdv_variance(gaps), ev.pdv_variance(256 * gaps))
    for name in ("ppl", "pdv_variance"):
        assert "DiffMorpher" in result.as_dict()["results"][name]["definition"]
    assert "note:" not in run(given).table()


def test_warnings_of_an_evaluation():
    given = sequences(4, inputs=True)
    with pytest.warns(UserWarning, match="FID of 12 images against 8 .* at least 30") as caught:
        result = ev.evaluate(given, "aid", distance=rms, features=colours, num_resamples=0)
    assert [str(w.message) for w in caught] == list(result.warnings)
    assert f"warning: {result.warnings[0]}" in result.table()
    enough = {"features": lambda x: x.mean((1, 2, 3))[:, None]}  # 1 feature: 5 images will do
    assert run(given, "aid", **enough, num_resamples=0).warnings == ()
    few = run([sequence(f"{i}") for i in range(5)], "aid", **enough).warnings
    assert len(few) == 1 and few[0].startswith("Intervals of means over 5 sequences cover less")
    assert run([sequence(f"{i}") for i in range(10)], "aid", **enough).warnings == ()
    pasted = dataclasses.replace(given[1], inputs=given[1].frames[[0, -1]])
    mixed = [given[0], pasted, given[2]]
    (found,) = run(mixed, **enough, num_resamples=0).warnings
    assert found.startswith("The first and last frames of 1 of 3 sequences are the input images")


def test_a_frame_equal_to_the_truth_has_no_ratio():
    given = sequences(2, truth=True)
    given[0] = dataclasses.replace(given[0], truth=given[0].frames[1:-1])
    result = run(given)
    assert result.missing["psnr"] == "it is inf: a middle frame equals the true one"
    assert result["ssim"].per_sequence[0] == pytest.approx(1)
    json.dumps(result.as_dict(), allow_nan=False)


def test_the_video_protocol():
    given = sequences(2, num_frames=3, truth=True)
    result = run(given, variant("saito_video3", resolution=None))
    assert [r.measure for r in result.results] == ["mse", "lpips", "psnr", "ssim"]
    errors = [float((s.frames[1] - s.truth[0]).square().mean()) for s in given]
    assert result["mse"].value == pytest.approx(np.mean(errors))
    assert result["psnr"].value == pytest.approx(-10 * np.mean(np.log10(errors)), rel=1e-6)


def test_one_middle_frame_is_no_set():
    result = run([sequence(num_frames=3)], "aid")
    assert result.missing == dict.fromkeys(["fid", "kid"], "a set of one frame has no spread")


def test_networks_that_cannot_be_loaded_raise_or_are_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    given = sequences(2, inputs=True)
    with pytest.raises(ImportError, match="lpips cannot be imported"):
        run(given, distance=None)
    result = run(given, distance=None, skip_missing=True)
    assert "ppl" not in [r.measure for r in result.results]
    assert result["re"].value > 0 and result["fid"].value > 0
    assert "lpips cannot be imported" in result.missing["ppl"]
    assert result.missing["ssim"] == "the sequences come without true middle frames"
    with pytest.raises(KeyError, match="ppl: lpips cannot be imported"):
        result["ppl"]
    with pytest.raises(ValueError, match="No measure of protocol video could be .*mse: the seq"):
        run(given, variant("saito_video3", name="video", num_frames=5, resolution=None))


def test_every_protocol_says_where_it_is_from():
    assert tuple(ev.PROTOCOLS) == PROTOCOL_NAMES
    for name, protocol in ev.PROTOCOLS.items():
        assert protocol.name == name and protocol.source.endswith(".")
    frames = {name: p.num_frames for name, p in ev.PROTOCOLS.items() if p.num_frames}
    assert frames == {"diffmorpher17": 17, "saito11": 11, "saito11_vgg": 11, "saito_video3": 3}


PASS = {"distance": rms, "features": colours}
BAD = [
    (lambda: run([sequence()], "ppl17"), "`protocol` must be one of diffmorpher17, saito11"),
    (lambda: run([], "any"), "`sequences` is empty"),
    (lambda: run([sequence()], "diffmorpher17"), "needs 17 frames, .* but a has 5"),
    (lambda: run([sequence()], "saito11"), "needs 11 frames, .* but a has 5"),
    (lambda: run([sequence(num_frames=2)]), "needs at least 3 frames, but a has 2"),
    (lambda: run([sequence(num_frames=3)], "saito_video3"), "512 x 512 pixels .* a has 12 x 12"),
    (
        lambda: run([sequence()], variant("any", num_sampled=4)),
        "draws 4 frames from each sequence, but a has only 3",
    ),
    (
        lambda: run([sequence(), sequence("b", num_frames=6)]),
        "a is 5 frames of .* and b is 6 frames",
    ),
    (
        lambda: run([sequence(inputs=True), sequence("b")]),
        "a is .* with inputs, .* and b is .* without inputs",
    ),
    (lambda: run([ev.FrameSequence("a", rand(5, 1, 8, 8))]), r"`frames` of a must be \(F, 3"),
    (lambda: run([ev.FrameSequence("a", 2 * rand(5, 3, 8, 8))]), r"values in \[0, 1\], but they"),
    (lambda: run([ev.FrameSequence("a", rand(5, 3, 8, 8).long())]), "floats or uint8, but got"),
    (
        lambda: run([ev.FrameSequence("a", rand(5, 3, 8, 8), rand(2, 3, 8, 9))]),
        r"`inputs` of a must be \(2, 3, 8, 8\), but got \(2, 3, 8, 9\)",
    ),
    (
        lambda: run([ev.FrameSequence("a", rand(5, 3, 8, 8), None, rand(5, 3, 8, 8))]),
        r"`truth` of a must be \(3, 3, 8, 8\), but got \(5, 3, 8, 8\)",
    ),
    (lambda: run([sequence()], num_resamples=-1), "`num_resamples` must be 0 or at least 2"),
    (lambda: run([sequence()], num_resamples=1), "must be 0 or at least 2, but got 1"),
    (lambda: run([sequence()], confidence=1.0), r"`confidence` must be in \(0, 1\), but got 1.0"),
    (lambda: run([sequence()], max_batch_size=0), "`max_batch_size` must be at least 1"),
    (
        lambda: run([sequence()], distance=lambda x, y: rms(x, y)[:, None]),
        r"`distance` must return \(4,\) for 4 pairs of images, but got \(4, 1\)",
    ),
    (lambda: run([sequence()], distance=lambda x, y: rms(x, y) / 0), "must return finite values"),
    (lambda: run([sequence()], features=lambda x: x), r"`features` must return \(3, d\) for 3"),
    (lambda: run([sequence()], features=lambda x: colours(x) / 0), "must return finite values"),
    (lambda: variant("any", measures=("ppl", "lpip")), "`measures` must be among ppl, pdv_var"),
    (lambda: variant("any", lpips_network="resnet"), "`lpips_network` must be one of alex, vgg"),
    (lambda: variant("any", set_frames="ends"), "`set_frames` must be 'interior' or 'all'"),
    (lambda: variant("any", num_frames=2), "`num_frames` must be at least 3, but got 2"),
    (lambda: ev.lpips_distance("resnet"), "`network` must be one of alex, vgg, squeeze or a mod"),
    (lambda: ev.adjacent_distances(rand(1, 3, 8, 8), rms), "at least 2 frames, but got 1"),
    (lambda: ev.largest_step(rand(1, 3, 8, 8)), "at least 2 frames, but got 1"),
    (lambda: ev.mse(rand(1, 3, 8, 8), rand(1, 3, 8, 9)), "one shape .* but got"),
    (lambda: ev.ssim(rand(1, 3, 10, 12), rand(1, 3, 10, 12)), "at least 11 .* but got 10 x 12"),
    (lambda: ev.frechet_distance(randn(3, 4), randn(3, 5)), r"\(n, d\) and \(m, d\), but got"),
    (lambda: ev.kernel_distance(randn(1, 4), randn(3, 4)), "at least 2 rows, but got 1 and 3"),
    (
        lambda: ev.frechet_distance(randn(3, 4) / 0, randn(3, 4)),
        "`x` and `y` must have finite values",
    ),
    (lambda: ev.mean_interval(randn(2)), "`values` must have at least 3 entries, but got 2"),
    (lambda: ev.mean_interval(randn(3), confidence=0), r"`confidence` must be in \(0, 1\)"),
    (lambda: ev.mean_interval(randn(3, 4)), r"`values` must be \(n,\), but got \(3, 4\)"),
    (lambda: ev.mean_interval(randn(3) * math.nan), r"`values` must be .* finite"),
    (
        lambda: ev.jackknife_interval(lambda kept: math.nan, 5),
        "`statistic` must be a finite number",
    ),
    (lambda: ev.jackknife_interval(torch.sum, 4), "`num_sequences` must be at least 5, but got 4"),
    (lambda: ev.jackknife_interval(torch.sum, 5, num_pairs=1), "`num_pairs` must be at least 2"),
    (lambda: ev.jackknife_interval(torch.sum, 5, confidence=1), r"must be in \(0, 1\), but got 1"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ------------------------------------------------------------------------------ folders and command


def write(folder, images, names=None):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        pixels = (255 * image).round().byte().permute(1, 2, 0).numpy()
        PIL.Image.fromarray(pixels).save(folder / (names[i] if names else f"{i}.png"))


@pytest.fixture
def folder(tmp_path):
    """A folder with three sequences of 12 frames of 12 x 14 pixels, two of them complete."""
    for i in range(3):
        frames = rand(12, 3, 14, 12, seed=i)
        write(tmp_path / "morphs" / f"pair_{i}", frames)
        write(tmp_path / "morphs" / f"pair_{i}" / "inputs", frames[[0, -1]] * 0.9)
        write(tmp_path / "morphs" / f"pair_{i}" / "truth", frames[1:-1] ** 1.1)
    (tmp_path / "morphs" / "pair_0" / "notes.txt").write_text("mine")
    (tmp_path / "morphs" / "pair_0.json").write_text("{}")
    (tmp_path / "morphs" / ".hidden").mkdir()
    return tmp_path / "morphs"


def test_sequences_of_a_folder(folder):
    found = ev.find_sequences(folder)
    assert [files.name for files in found] == ["pair_0", "pair_1", "pair_2"]
    assert [path.name for path in found[0].frames] == [f"{i}.png" for i in range(12)]
    assert found[0].resolution == (14, 12)
    loaded = found[1].load()
    assert loaded.frames.dtype == torch.uint8 and loaded.frames.shape == (12, 3, 14, 12)
    expected = (255 * rand(12, 3, 14, 12, seed=1)).round().byte()
    assert torch.equal(loaded.frames, expected)
    assert loaded.inputs.shape == (2, 3, 14, 12) and loaded.truth.shape == (10, 3, 14, 12)


def test_turned_and_grey_images(tmp_path):
    turned = PIL.Image.Exif()
    turned[0x0112] = 6
    write(tmp_path / "a", rand(2, 3, 14, 12))
    PIL.Image.new("RGB", (14, 12)).save(tmp_path / "a" / "2.jpg", exif=turned)
    PIL.Image.new("L", (12, 14), 255).save(tmp_path / "a" / "3.png")
    (files,) = ev.find_sequences(tmp_path)
    assert files.resolution == (14, 12) and files.inputs == ()
    loaded = files.load()
    assert loaded.frames.shape == (4, 3, 14, 12) and loaded.inputs is None
    assert loaded.frames[3].min() == 255


def command(*arguments):
    return main(["evaluate", *map(str, arguments)])


FLAGS = ["--protocol", "any", "--resamples", "20", "--device", "cpu"]


def test_command_without_weights(folder, tmp_path, capsys):
    assert command(folder, *FLAGS, "-o", tmp_path / "out.json") == 0
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "out.json").read_text())
    assert list(report["results"]) == ["re", "largest_step", "mse", "psnr", "ssim"]
    assert set(report["missing"]) == set(ev.MEASURES) - set(report["results"])
    for reason in report["missing"].values():
        assert f": {reason}\n" in printed
        assert "riemannian-diffusion[eval]" in reason or "needs the file" in reason
    for row in report["results"].values():
        assert row["interval"][0] <= row["value"] <= row["interval"][1]
        assert row["protocol"] == "any" and row["resolution"] == [14, 12]
    errors = []
    for files in ev.find_sequences(folder):
        frames, inputs = (x.double() / 255 for x in (files.load().frames, files.load().inputs))
        errors.append(float((frames[[0, -1]] - inputs).square().mean()))
    assert report["results"]["re"]["per_sequence"] == pytest.approx(errors, rel=1e-4)
    assert report["sequences"] == ["pair_0", "pair_1", "pair_2"]
    assert {"python", "riemannian-diffusion", "torch", "torchmetrics"} <= set(report["versions"])
    assert report["arguments"]["protocol"] == "any" and report["seed"] == 0
    begun, first = printed.splitlines()[:2]
    assert begun == f"measuring {folder} ..."
    assert first == "protocol any: 3 sequences of 12 frames, 12 x 14 px, seed 0"
    assert not list(tmp_path.glob(".*"))


def test_command_with_networks(folder, tmp_path, capsys, monkeypatch):
    from riemannian_diffusion.evaluation import evaluator

    asked = []
    monkeypatch.setattr(evaluator, "lpips_distance", lambda net, device: asked.append(net) or rms)
    monkeypatch.setattr(evaluator, "inception_features", lambda device: colours)
    assert command(folder, *FLAGS, "--strict", "-o", tmp_path / "out.json") == 0
    report = json.loads((tmp_path / "out.json").read_text())
    assert list(report["results"]) == list(ev.MEASURES) and not report["missing"]
    assert asked == ["alex"]
    given = [files.load() for files in ev.find_sequences(folder)]
    expected = run(given).as_dict()
    for name, row in report["results"].items():
        assert row["value"] == pytest.approx(expected["results"][name]["value"], rel=1e-9)
        interval = expected["results"][name]["interval"]
        assert row["interval"] == (interval and pytest.approx(interval, rel=1e-9))
    printed = capsys.readouterr()
    assert "warning: FID of 30 images against 6" in printed.out and not printed.err


def test_command_keeps_what_exists(folder, tmp_path, capsys):
    (tmp_path / "out.json").write_text("mine")
    assert command(folder, *FLAGS, "-o", tmp_path / "out.json") == 2
    assert "exists: choose another --output, or overwrite with --force" in capsys.readouterr().err
    assert (tmp_path / "out.json").read_text() == "mine"
    assert command(folder, *FLAGS, "-o", tmp_path / "out.json", "--force") == 0
    assert json.loads((tmp_path / "out.json").read_text())["missing"]


BAD_COMMANDS = [
    ([], "--protocol"),
    (["morphs", "--protocol", "mine"], "argument --protocol: invalid choice: 'mine'"),
    (["nowhere", *FLAGS], "nowhere is not a folder"),
    (["empty", *FLAGS], "empty holds no folder of frames."),
    (
        ["morphs/pair_0", "--protocol", "any"],
        "pair_0 holds no folder of frames: it holds images itself",
    ),
    (["one", *FLAGS], "one holds no folder of frames: it holds images itself"),
    (["hollow", *FLAGS], "hollow/a holds no frames: images ending in .png"),
    (["mixed", *FLAGS], "mixed/a/1.png (8, 9): resize the originals as the morph did"),
    (["three", *FLAGS], "three/a/inputs must hold two images, but holds 3"),
    (["broken", *FLAGS], "cannot identify image file"),
    (
        ["morphs", "--protocol", "diffmorpher17"],
        "needs 17 frames, including the first",
    ),
    (["morphs", *FLAGS, "--strict"], "riemannian-diffusion: error: "),
    (["morphs", *FLAGS, "--device", "moon"], "--device moon cannot be used"),
    (
        ["morphs", *FLAGS, "--resamples", "-1"],
        "--resamples must be 0 or at least 2",
    ),
    (["morphs", *FLAGS, "-o", "out.txt"], "--output must end in .json, but got out.txt"),
    (["morphs", *FLAGS, "-o", "no/out.json"], "the folder no of --output does not exist"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), BAD_COMMANDS, ids=[message for _, message in BAD_COMMANDS]
)
def test_bad_commands_give_one_line_and_status_2(
    folder, arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow" / "a").mkdir(parents=True)
    images = rand(3, 3, 8, 8)
    write(tmp_path / "one", images)
    write(tmp_path / "mixed" / "a", [images[0], rand(3, 8, 9)])
    write(tmp_path / "three" / "a", images)
    write(tmp_path / "three" / "a" / "inputs", images)
    write(tmp_path / "broken" / "a", images)
    (tmp_path / "broken" / "a" / "1.png").write_text("no image")
    before = sorted(tmp_path.rglob("*"))
    try:
        status = command(*arguments)
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert sorted(tmp_path.rglob("*")) == before


# --------------------------------------------------------------------------------- the place it has


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_evaluation_stands_beside_the_pipelines_and_needs_no_extra_to_import():
    root = Path(riemannian_diffusion.__file__).parent
    for path in root.rglob("*.py"):
        names = set(imported(ast.parse(path.read_text())))
        inside = path.parent.name == "evaluation"
        if inside:
            assert not any("pipelines" in name for name in names), path
            assert not {n.partition(".")[0] for n in names} & {"lpips", "torchmetrics"}, path
        elif path.name not in ("batch.py", "commands.py", "retiming.py"):  # only on request
            assert not any("evaluation" in name for name in names), path
