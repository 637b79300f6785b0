"""Classifier-free guidance along the data manifold, as a score."""

from __future__ import annotations

from torch import Tensor

from riemannian_diffusion.arguments import check_finite, check_kind
from riemannian_diffusion.score import ScoreModel, Where


class ManifoldGuidedScore(ScoreModel):
    """A conditional score that is guided along the data manifold.

    Each point takes three evaluations of a score. Plain guidance takes two.

    Args:
        conditional: The score under the condition.
        unconditional: The score without the condition, or under a negative condition, at the same
            noise level.
        guidance_scale: Weight `w`, at least 1; 1 gives the conditional score.
        damping: How much the part normal to the manifold is damped, in [0, 1]; 0 is plain guidance.
            Measurements do not show that the default is better than plain guidance of a lower
            weight; see `riemannian_diffusion.guidance`.

    Raises:
        ValueError: If the noise levels differ, `guidance_scale` is below 1, or `damping` is outside
            [0, 1].

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import GaussianMixtureScore, ManifoldGuidedScore
        >>> angles = torch.arange(64) * 2 * torch.pi / 64
        >>> circle = torch.stack([angles.cos(), angles.sin()], 1)
        >>> score = GaussianMixtureScore(circle, 0.2)
        >>> half = GaussianMixtureScore(circle[:32], 0.2)
        >>> guided = ManifoldGuidedScore(half, score, guidance_scale=3.0)
        >>> tuple(guided(circle[:2]).shape)
        (2, 2)
    """

    def __init__(
        self,
        conditional: ScoreModel,
        unconditional: ScoreModel,
        guidance_scale: float,
        *,
        damping: float = 0.5,
    ):
        check_kind(ScoreModel, conditional=conditional, unconditional=unconditional)
        check_finite(guidance_scale=guidance_scale)
        if not guidance_scale >= 1:
            raise ValueError(f"`guidance_scale` must be at least 1, but got {guidance_scale}.")
        check_damping(damping)
        levels = [(score.alpha, score.sigma) for score in (conditional, unconditional)]
        if levels[0] != levels[1]:
            raise ValueError(
                "`conditional` and `unconditional` must have one noise level (alpha, sigma), but "
                f"they have {levels}."
            )
        self.alpha, self.sigma = levels[0]
        self.conditional, self.unconditional = conditional, unconditional
        self.guidance_scale, self.damping = guidance_scale, damping

    def __call__(self, x: Tensor, where: Where | None = None) -> Tensor:
        """The score at each point, `(K, *shape) -> (K, *shape)`."""
        conditional, unconditional = self.conditional(x, where), self.unconditional(x, where)
        difference = conditional - unconditional
        moved = self.unconditional(x + self.sigma**2 * difference, where)
        damped = difference + self.damping * (moved - unconditional)
        return conditional + (self.guidance_scale - 1) * damped

    def jvp(self, x: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        """The product `J(x) v`, from products of both scores."""
        point = x + self.sigma**2 * (self.conditional(x, where) - self.unconditional(x, where))
        conditional = self.conditional.jvp(x, v, where)
        unconditional = self.unconditional.jvp(x, v, where)
        difference = conditional - unconditional
        moved = self.unconditional.jvp(point, v + self.sigma**2 * difference, where)
        damped = difference + self.damping * (moved - unconditional)
        return conditional + (self.guidance_scale - 1) * damped

    def vjp(self, x: Tensor, w: Tensor, where: Where | None = None) -> Tensor:
        """The product `J(x)^T w`, from products of both scores."""
        point = x + self.sigma**2 * (self.conditional(x, where) - self.unconditional(x, where))
        guided = (self.guidance_scale - 1) * w
        damped = self.damping * guided
        moved = self.unconditional.vjp(point, damped, where)
        difference = guided + self.sigma**2 * moved
        conditional = self.conditional.vjp(x, w + difference, where)
        return conditional - self.unconditional.vjp(x, difference + damped, where) + moved


def check_damping(damping: float) -> None:
    """Raise a `ValueError` if the damping is outside [0, 1]."""
    check_finite(damping=damping)
    if not 0 <= damping <= 1:
        raise ValueError(f"`damping` must be in [0, 1], but got {damping}.")
