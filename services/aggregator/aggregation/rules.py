"""Means of vectors and measures of confusion counts. Pure numpy: knows no rounds, no clock and no storage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from ifed.errors import LayoutMismatch, WrongState
from services.aggregator.aggregation.robust import (
    Rows,
    bounded,
    coordinate_median,
    geometric_median,
    hostile_among,
    multi_krum,
    nearest_neighbour_mixing,
    trimmed_mean,
)
from services.aggregator.domain.evaluation import Float64


class WeightedMean:
    """`Σ w_k x_k / Σ w_k` as a running sum in float64: memory does not grow with the number of contributions.

    Equation 5 of arXiv 2511.06757 for context vectors; FedAvg (arXiv 1602.05629, algorithm 1) for coefficients. A sum in floating
    point depends on its order, so whoever adds must add in client-id order for the same contributions to give the same bytes.
    """

    def __init__(self) -> None:
        self._sum: Float64 | None = None
        self.weight = 0

    def add(self, values: npt.NDArray[np.floating], weight: int) -> None:
        """Add `values` with `weight` examples behind them.

        Raises:
            LayoutMismatch: another shape than the first values had.
        """
        if self._sum is None:
            self._sum = np.zeros(values.shape, dtype=np.float64)
        if self._sum.shape != values.shape:
            raise LayoutMismatch(f"values of shape {values.shape} cannot be added to a mean of shape {self._sum.shape}")
        self._sum += values.astype(np.float64) * weight
        self.weight += weight

    def value(self) -> Float64:
        """The mean so far, float64, in the shape of what was added.

        Raises:
            WrongState: nothing was added, or nothing that carries weight.
        """
        if self._sum is None or self.weight <= 0:
            raise WrongState("there is no mean of contributions that carry no weight")
        return self._sum / self.weight


Weights = npt.NDArray[np.float64]
RuleName = Literal["weighted_mean", "median", "trimmed_mean", "multi_krum", "geometric_median"]
RULES: dict[str, Callable[[Rows, Weights, int], Float64]] = {
    "weighted_mean": lambda rows, weights, _hostile: _mean(rows, weights),
    "median": lambda rows, _weights, _hostile: coordinate_median(rows),
    "trimmed_mean": lambda rows, _weights, hostile: trimmed_mean(rows, hostile),
    "multi_krum": lambda rows, _weights, hostile: multi_krum(rows, hostile),
    "geometric_median": lambda rows, weights, _hostile: geometric_median(rows, weights),
}


class Rules(Protocol):
    """The part of `ifed.tasks.Policy` that says how contributions become one."""

    @property
    def aggregation(self) -> RuleName: ...
    @property
    def nearest_neighbour_mixing(self) -> bool: ...
    @property
    def byzantine_fraction(self) -> float: ...
    @property
    def norm_bound(self) -> float | None: ...
    @property
    def weight_cap(self) -> int: ...


class Reducer:
    """Contributions in, their aggregate out.

    A weighted mean is a running sum; every other rule must see all contributions at once and keeps them in float32. Median, trimmed
    mean and multi-Krum count each client once, whatever weight it claims; after mixing every rule does.

    Args:
        rules: which rule, with its numbers.
        origin: where updates start from; with it, each contribution's distance from it is bounded by `norm_bound`.
    """

    def __init__(self, rules: Rules, origin: Float64 | None = None) -> None:
        self._rules, self._origin = rules, origin
        self.mean = WeightedMean()
        self.examples = 0
        self._rows: list[npt.NDArray[np.float32]] = []
        self._weights: list[int] = []

    def add(self, values: npt.NDArray[np.floating], weight: int) -> None:
        """Add one contribution with the examples it claims behind it.

        Raises:
            LayoutMismatch: another shape than the first one had.
            NonFinite: NaN or Inf, where it would be aggregated.
        """
        near = self._within_bounds(values)
        self.examples += weight
        if self.streams:
            self.mean.add(near, self.capped(weight))
            return
        if self._rows and self._rows[0].shape != near.shape:
            raise LayoutMismatch(f"values of shape {near.shape} cannot be aggregated with values of shape {self._rows[0].shape}")
        self._rows.append(near.astype(np.float32))
        self._weights.append(self.capped(weight))

    @property
    def streams(self) -> bool:
        """Whether a running sum is all that is kept."""
        return self._rules.aggregation == "weighted_mean" and not self._rules.nearest_neighbour_mixing

    def capped(self, weight: int) -> int:
        """The weight that counts."""
        return min(weight, self._rules.weight_cap)

    def value(self) -> Float64:
        """The aggregate, float64, in the shape of the contributions.

        Raises:
            WrongState: too few contributions for the rule, or none that carries weight.
        """
        if self.streams:
            return self.mean.value()
        if not self._rows:
            raise WrongState("there is no aggregate of no contributions")
        rows: Rows = np.stack([row.ravel() for row in self._rows])
        weights = np.array(self._weights, dtype=np.float64)
        hostile = hostile_among(len(rows), self._rules.byzantine_fraction)
        if self._rules.nearest_neighbour_mixing:
            rows, weights = nearest_neighbour_mixing(rows, hostile), np.ones(len(rows))
        return RULES[self._rules.aggregation](rows, weights, hostile).reshape(self._rows[0].shape)

    def _within_bounds(self, values: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        if self._origin is None or self._rules.norm_bound is None:
            return values
        step = values.astype(np.float64) - self._origin
        return self._origin + bounded(step, self._rules.norm_bound)


def _mean(rows: Rows, weights: Weights) -> Float64:
    total = WeightedMean()
    for row, weight in zip(rows, weights, strict=True):
        total.add(row, int(weight))
    return total.value()
