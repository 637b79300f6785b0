"""The score of any denoiser."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from riemannian_diffusion.arguments import check_callable, check_finite, kind_of
from riemannian_diffusion.score.model import ScoreModel
from riemannian_diffusion.score.where import Where


class DenoiserScore(ScoreModel):
    """The score `(D(x) - x) / sigma^2` of a denoiser `D(x) = E[alpha x_0 | x]` (Tweedie).

    The denoiser can be a network of EDM, k-diffusion or azula at one noise level, or a formula.

    Args:
        function: A differentiable function that maps points `(K, *shape)` to denoised points
            `(K, *shape)`, independently of each other.
        sigma: Standard deviation of the noise, positive.
        alpha: Factor of the clean data, positive; 1 for models of `x_0 + sigma eps`.

    Raises:
        ValueError: If `function` is not callable, or `sigma` or `alpha` is not positive.

    Examples:
        Networks of EDM, EDM2 and k-diffusion are called with points and a noise level for each:

        >>> import torch
        >>> from riemannian_diffusion import DenoiserScore
        >>> def net(x, sigma):  # here: the exact denoiser of data with unit variance
        ...     return x / (1 + sigma.view(-1, 1) ** 2)
        >>> score = DenoiserScore(lambda x: net(x, x.new_full((len(x),), 2.0)), sigma=2.0)
        >>> score(torch.tensor([[5.0, 0.0]]))  # -x / (1 + sigma^2)
        tensor([[-1.,  0.]])
    """

    def __init__(self, function: Callable[[Tensor], Tensor], sigma: float, *, alpha: float = 1.0):
        check_callable(function=function)
        check_finite(sigma=sigma, alpha=alpha)
        if not (sigma > 0 and alpha > 0):
            raise ValueError(
                f"`sigma` and `alpha` must be positive, but got sigma={sigma}, alpha={alpha}."
            )
        self.function, self.sigma, self.alpha = function, float(sigma), float(alpha)

    def __call__(self, x: Tensor, where: Where | None = None) -> Tensor:
        """The score at each point, `(K, *shape) -> (K, *shape)`."""
        return (self.denoise(x) - x) / self.sigma**2

    def denoise(self, x: Tensor, where: Where | None = None) -> Tensor:
        """The denoised points, `(K, *shape) -> (K, *shape)`."""
        denoised = self.function(x)
        if not isinstance(denoised, Tensor) or denoised.shape != x.shape:
            found = tuple(denoised.shape) if isinstance(denoised, Tensor) else kind_of(denoised)
            raise ValueError(
                f"`function` must return points of the shape of its argument, {tuple(x.shape)}, "
                f"but returned {found}."
            )
        return denoised
