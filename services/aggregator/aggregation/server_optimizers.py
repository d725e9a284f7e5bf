"""Server optimisers: the step from the mean update of a round to the next coefficients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ifed.errors import LayoutMismatch
from ifed.messages.tasks import OptimizerName
from ifed.tensors.values import Float64


@dataclass(frozen=True, slots=True)
class Moments:
    """The state of an optimiser between rounds, each float64 of the shape of the coefficients.

    Attributes:
        first: m, the running mean of the updates.
        second: v, the running mean of their squares; None for an optimiser that keeps none.
    """

    first: Float64
    second: Float64 | None = None


@dataclass(frozen=True, slots=True)
class ServerOptimizer:
    """`ServerOpt` of arXiv 2003.00295, algorithms 1 and 2, on the mean update Δ: what the mean client would add to the coefficients.

    In gradient mode Δ is the negative mean gradient. FedAvg and FedAvgM are as in arXiv 1909.06335: `m = β₁ m + Δ`. There is no bias
    correction, as published.

    Attributes:
        rate: η.
        momentum: β₁.
        second_momentum: β₂.
        adaptivity: τ; v begins at τ².
    """

    name: OptimizerName
    rate: float
    momentum: float = 0.9
    second_momentum: float = 0.99
    adaptivity: float = 1e-3

    @property
    def plain(self) -> bool:
        """Whether the step is the mean itself: FedAvg with η = 1."""
        return self.name == "fedavg" and self.rate == 1.0

    def step(self, start: Float64, update: Float64, moments: Moments | None) -> tuple[Float64, Moments | None]:
        """Return the coefficients after the step, and the moments for the next one.

        Args:
            start: the coefficients before the step.
            update: Δ, of the same shape.
            moments: after the previous step; None before the first.

        Raises:
            LayoutMismatch: the shapes of the arguments differ.
        """
        if start.shape != update.shape or (moments is not None and moments.first.shape != update.shape):
            raise LayoutMismatch(f"an update of shape {update.shape} is no step from coefficients of shape {start.shape}")
        match self.name:
            case "fedavg":
                return start + self.rate * update, None
            case "fedavgm":
                first = update if moments is None else self.momentum * moments.first + update
                return start + self.rate * first, Moments(first)
            case "fedadam" | "fedyogi":
                return self._adaptive_step(start, update, moments)

    def _adaptive_step(self, start: Float64, update: Float64, moments: Moments | None) -> tuple[Float64, Moments]:
        mean = moments.first if moments is not None else np.zeros_like(update)
        spread = np.full_like(update, self.adaptivity**2) if moments is None or moments.second is None else moments.second
        first = self.momentum * mean + (1 - self.momentum) * update
        square = np.square(update)
        if self.name == "fedadam":
            second = self.second_momentum * spread + (1 - self.second_momentum) * square
        else:
            second = spread - (1 - self.second_momentum) * square * np.sign(spread - square)
        return start + self.rate * first / (np.sqrt(second) + self.adaptivity), Moments(first, second)
