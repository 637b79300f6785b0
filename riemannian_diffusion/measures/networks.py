"""Networks behind LPIPS, FID and KID: from lpips and torchmetrics, or given by the caller."""

from __future__ import annotations

import contextlib
import io
import pickle
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from riemannian_diffusion.measures.frames import import_extra

# Smallest side of an image for which every layer has an output, and the file with the weights.
LPIPS_NETWORKS = {
    "alex": (31, "alexnet-owt-7be5be79.pth"),
    "vgg": (16, "vgg16-397923af.pth"),
    "squeeze": (17, "squeezenet1_1-b8a52dc0.pth"),
}
_TORCHVISION_URL = "https://download.pytorch.org/models/"
_INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)


@dataclass(frozen=True)
class LPIPSDistance:
    """LPIPS of images in [0, 1], `(N, 3, H, W) x2 -> (N,)`; `lpips_distance` makes one.

    Attributes:
        name: Name of the network, for reports.
        network: Network that takes images in [-1, 1].
        min_side: Smallest allowed height and width of an image.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion.evaluation import lpips_distance
        >>> class Squares(torch.nn.Module):  # in place of 'alex', whose weights are downloaded
        ...     def forward(self, x, y):
        ...         return (x - y).square().mean((1, 2, 3))
        >>> distance = lpips_distance(Squares())
        >>> distance(torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8))
        tensor([4., 4.])
    """

    name: str
    network: nn.Module = field(repr=False)
    min_side: int = 1

    @torch.no_grad()
    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance of each image of `x` to the image of `y` in the same place."""
        if min(x.shape[-2:]) < self.min_side:
            raise ValueError(
                f"{self.name} needs images of at least {self.min_side} pixels a side, but got "
                f"{x.shape[-2]} x {x.shape[-1]}."
            )
        like = _parameter(self.network)
        return self.network(2 * x.to(like) - 1, 2 * y.to(like) - 1).flatten()


@dataclass(frozen=True)
class ImageFeatures:
    """Features of images in [0, 1], `(N, 3, H, W) -> (N, d)`; `inception_features` makes one.

    Attributes:
        name: Name of the network, for reports.
        network: Network that takes uint8 images.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion.evaluation import inception_features
        >>> class Means(torch.nn.Module):  # in place of Inception-v3, whose weights are downloaded
        ...     def forward(self, x):
        ...         return x.float().mean((2, 3))
        >>> features = inception_features(Means())
        >>> features(torch.ones(2, 3, 8, 8))[0]
        tensor([255., 255., 255.])
    """

    name: str
    network: nn.Module = field(repr=False)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Features of each image."""
        return self.network((255 * x).round().byte().to(_parameter(self.network).device))


def lpips_distance(network: str | nn.Module = "alex", *, device: str = "cpu") -> LPIPSDistance:
    """LPIPS of the lpips package, version 0.1, as a distance of images in [0, 1].

    Args:
        network: "alex", "vgg" or "squeeze", whose weights torchvision downloads once. Or your own
            network of two batches of images in [-1, 1], such as a `lpips.LPIPS`. Its device and
            mode are not changed.
        device: Device for a network that is given by its name.

    Raises:
        ImportError: If lpips is missing.
        OSError: If the weights cannot be loaded or downloaded; the message names their file.
        ValueError: If the name of the network is unknown.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion.evaluation import lpips_distance
        >>> class Squares(torch.nn.Module):  # in place of 'alex', whose weights are downloaded
        ...     def forward(self, x, y):
        ...         return (x - y).square().mean((1, 2, 3))
        >>> distance = lpips_distance(Squares())
        >>> distance(torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8))
        tensor([4., 4.])
    """
    if isinstance(network, nn.Module):
        return LPIPSDistance(_passed_in(network), network)
    if network not in LPIPS_NETWORKS:
        raise ValueError(
            f"`network` must be one of {', '.join(LPIPS_NETWORKS)} or a module, but got "
            f"{network!r}."
        )
    lpips = import_extra("lpips")
    min_side, file = LPIPS_NETWORKS[network]
    name = f"LPIPS {network} 0.1"
    loaded = _load(
        lambda: lpips.LPIPS(net=network, version="0.1", verbose=False),
        name,
        _TORCHVISION_URL + file,
    )
    return LPIPSDistance(name, loaded.to(device), min_side)


def inception_features(network: nn.Module | None = None, *, device: str = "cpu") -> ImageFeatures:
    """The 2,048 features per image of Inception-v3 that FID uses, as in torchmetrics.

    Args:
        network: Your own network, which takes uint8 images `(N, 3, H, W)` and returns features
            `(N, d)`. Its device and mode are not changed. None takes Inception-v3.
        device: Device for Inception-v3.

    Raises:
        ImportError: If torchmetrics or torch-fidelity is missing.
        OSError: If the weights cannot be loaded or downloaded; the message names their file.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion.evaluation import inception_features
        >>> class Means(torch.nn.Module):  # in place of Inception-v3, whose weights are downloaded
        ...     def forward(self, x):
        ...         return x.float().mean((2, 3))
        >>> features = inception_features(Means())
        >>> features(torch.ones(2, 3, 8, 8))[0]
        tensor([255., 255., 255.])
    """
    if network is not None:
        return ImageFeatures(_passed_in(network), network)
    fid = import_extra("torchmetrics.image.fid")
    import_extra("torch_fidelity")
    name = "Inception-v3 2048 (torchmetrics)"
    loaded = _load(
        lambda: fid.NoTrainInceptionV3("inception-v3-compat", ["2048"]), name, _INCEPTION_URL
    )
    return ImageFeatures(name, loaded.to(device))


def _parameter(network: nn.Module) -> Tensor:
    """A tensor with the device and dtype of a network; without parameters, float32 on the CPU."""
    return next(network.parameters(), torch.empty(0))


def _passed_in(network: nn.Module) -> str:
    return f"{type(network).__name__} (passed in)"


def _load(build: Callable[[], nn.Module], name: str, url: str) -> nn.Module:
    """Load a network. In place of the lines of a download, one line says what is downloaded."""
    folder, file = Path(torch.hub.get_dir()) / "checkpoints", url.rpartition("/")[2]
    if not (folder / file).exists():
        print(f"riemannian-diffusion: downloading {file} for {name} ...", file=sys.stderr)
    silence = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(silence),
            contextlib.redirect_stderr(silence),
        ):
            warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
            return build()
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(
            f"{name} needs the file {file}, which could not be loaded ({reason}): download {url} "
            f"into {folder}, or pass a network of your own."
        ) from error
