"""Classifier-free guidance along the data manifold: its part normal to the manifold is damped.

Plain guidance is `eps_c + (w - 1) g` with `g = eps_c - eps_u`. It moves the estimate of the clean
point in a straight line by `w - 1` times the difference of two estimates, which can lead off the
manifold when `w` is large. Here the normal part of the difference is damped. Near the data, the
Jacobian `J_D` of the unconditional denoiser projects onto the tangent space of the manifold, so
`J_D g` is the tangent part of `g`. It is computed as the change of the unconditional estimate under
one unit of guidance,

    D_u(x + D_c(x) - D_u(x)) - D_u(x)  =  J_D (D_c - D_u) + O(|D_c - D_u|^2),

which takes three network evaluations instead of two. A `damping` of 1 uses this change alone. A
`damping` of 1/2, the default, uses the mean of it and `g`, which near the data is
`(I + J_r^T J_r)^-1 g` with `J_r = I - J_D`. A `damping` of 0 is plain guidance. A guidance scale of
1 is the conditional model without guidance.

A damped method guides less at the same weight. `benchmarks/guidance.py` compares a damping of 1/2
with plain guidance over the same weights:

- At equal weight, where data spread around their manifold, its samples are 3 to 14 % nearer the
  manifold on average. On thin manifolds with exact scores they are up to 1.96 times farther.
- At equal probability of the class, the mean ratio of the distances is 0.99 to 1.00 where data
  spread, 0.99 on the shipped model, and 1.24 and 1.96 on thin manifolds.

So the measurements do not show that the default is better than plain guidance of a lower weight. It
stays nearer spread data where the weight is given.

Splitting guidance by the Jacobian of the score is proposed in arXiv 2510.05509, version 2. This
library has its own form of it; `benchmarks/guidance.py` compares the candidates.
"""

from typing import TYPE_CHECKING

from riemannian_diffusion.lazy import lazy_names

if TYPE_CHECKING:
    from riemannian_diffusion.guidance.guider import ManifoldGuidance
    from riemannian_diffusion.guidance.score import ManifoldGuidedScore
else:  # the score needs only PyTorch; the guider needs diffusers
    __getattr__, __dir__ = lazy_names(
        __name__,
        {"guider": ("ManifoldGuidance",), "score": ("ManifoldGuidedScore",)},
    )

__all__ = ["ManifoldGuidance", "ManifoldGuidedScore"]
