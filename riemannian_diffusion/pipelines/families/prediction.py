"""How a family calls its transformer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from riemannian_diffusion.pipelines.geodesic_interpolation import GeodesicInterpolationMixin
from riemannian_diffusion.score.network import Predict


@dataclass(frozen=True)
class TransformerPrediction(ABC):
    """What a transformer predicts; one class for each way of calling it.

    Attributes:
        transformer: The network.
        num_train_timesteps: The timestep of pure noise.
        options: Arguments of its attention.
    """

    transformer: Any
    num_train_timesteps: int
    options: Mapping[str, Any] = field(default_factory=dict)

    @abstractmethod
    def __call__(self, x: Tensor, timestep: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """The network's output at points `(K, C, h, w)`."""

    def times(self, x: Tensor, timestep: Tensor) -> Tensor:
        """The time of each point, `(K,)`: 0 without noise, 1 for pure noise."""
        return (timestep / self.num_train_timesteps).expand(len(x))


class TransformerMixin(GeodesicInterpolationMixin):
    """A family whose network is a transformer.

    Attributes:
        _predicts: How the family calls its transformer.
    """

    _predicts: type[TransformerPrediction]

    if TYPE_CHECKING:
        transformer: Any

    def _prediction(self, options: Mapping[str, Any]) -> Predict:
        num = self.scheduler.config.num_train_timesteps
        return self._predicts(self.transformer, num, options)
