"""The step from a round's mean update to the next coefficients, and what it remembers. Pure numpy: knows no rounds and no storage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ifed.errors import LayoutMismatch

Float64 = npt.NDArray[np.float64]
Name = Literal["fedavg", "fedavgm", "fedadam", "fedyogi"]


@dataclass(frozen=True, slots=True)
class Moments:
    """What an optimiser remembers between rounds, each float64 of the coefficients' shape.

    Attributes:
        first: m, the running mean of the updates.
        second: v, the running mean of their squares; None where the optimiser keeps none.
    """

    first: Float64
    second: Float64 | None = None


@dataclass(frozen=True, slots=True)
class ServerOptimizer:
    """`ServerOpt` of arXiv 2003.00295, algorithms 1 and 2, on the mean update Δ: what the mean client would add to the coefficients.

    In gradient mode Δ is the negative mean gradient. FedAvg and FedAvgM as in arXiv 1909.06335: `m = β₁ m + Δ`. No bias correction,
    as published.

    Attributes:
        rate: η.
        momentum: β₁.
        second_momentum: β₂.
        adaptivity: τ; v begins at τ².
    """

    name: Name
    rate: float
    momentum: float = 0.9
    second_momentum: float = 0.99
    adaptivity: float = 1e-3

    @property
    def plain(self) -> bool:
        """Whether the step is the mean itself: FedAvg with η = 1."""
        return self.name == "fedavg" and self.rate == 1.0

    def step(self, start: Float64, update: Float64, moments: Moments | None) -> tuple[Float64, Moments | None]:
        """The coefficients after the step, and what to remember.

        Raises:
            LayoutMismatch: start, update and moments are not of one shape.
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
                return self._adaptive(start, update, moments)

    def _adaptive(self, start: Float64, update: Float64, moments: Moments | None) -> tuple[Float64, Moments]:
        before = moments.first if moments is not None else np.zeros_like(update)
        spread = np.full_like(update, self.adaptivity**2) if moments is None or moments.second is None else moments.second
        first = self.momentum * before + (1 - self.momentum) * update
        square = np.square(update)
        if self.name == "fedadam":
            second = self.second_momentum * spread + (1 - self.second_momentum) * square
        else:
            second = spread - (1 - self.second_momentum) * square * np.sign(spread - square)
        return start + self.rate * first / (np.sqrt(second) + self.adaptivity), Moments(first, second)
