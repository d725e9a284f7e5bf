"""Aggregation rules: how the contributions of a round become one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ifed.errors import LayoutMismatch, WrongState
from ifed.messages.tasks import AggregationRule, Policy, ceil_share
from ifed.tensors.values import Float32, Float64
from services.aggregator.aggregation.robust import (
    Rows,
    bounded,
    coordinate_median,
    geometric_median,
    multi_krum,
    nearest_neighbour_mixing,
    trimmed_mean,
)


class WeightedMean:
    """`Σ w_k x_k / Σ w_k` as a running sum in float64: memory does not grow with the number of contributions.

    Equation 5 of arXiv 2511.06757 for context vectors; FedAvg (arXiv 1602.05629, algorithm 1) for coefficients. A floating-point sum
    depends on its order, so contributions must be added in the order of client names to give the same bytes again.

    Attributes:
        weight: the sum of the weights so far.
    """

    def __init__(self) -> None:
        self._sum: Float64 | None = None
        self.weight = 0

    def add(self, values: npt.NDArray[np.floating], weight: int) -> None:
        """Add `values` with `weight` examples behind them.

        Raises:
            LayoutMismatch: their shape is not that of the first values.
        """
        if self._sum is None:
            self._sum = np.zeros(values.shape, dtype=np.float64)
        if self._sum.shape != values.shape:
            raise LayoutMismatch(f"values of shape {values.shape} cannot be added to a mean of shape {self._sum.shape}")
        self._sum += values.astype(np.float64) * weight
        self.weight += weight

    def value(self) -> Float64:
        """Return the mean so far, float64, in the shape of what was added.

        Raises:
            WrongState: nothing was added, or only with weight 0.
        """
        if self._sum is None or self.weight <= 0:
            raise WrongState("there is no mean of contributions that carry no weight")
        return self._sum / self.weight


def _weighted_mean(rows: Rows, weights: Float64) -> Float64:
    mean = WeightedMean()
    for row, weight in zip(rows, weights, strict=True):
        mean.add(row, int(weight))
    return mean.value()


# From rows (n, m), weights (n,) and the number of hostile rows to the aggregate (m,).
RULES: dict[AggregationRule, Callable[[Rows, Float64, int], Float64]] = {
    "weighted_mean": lambda rows, weights, _hostile: _weighted_mean(rows, weights),
    "median": lambda rows, _weights, _hostile: coordinate_median(rows),
    "trimmed_mean": lambda rows, _weights, hostile: trimmed_mean(rows, hostile),
    "multi_krum": lambda rows, _weights, hostile: multi_krum(rows, hostile),
    "geometric_median": lambda rows, weights, _hostile: geometric_median(rows, weights),
}


class Reducer:
    """Reduces contributions to their aggregate by the rule of a policy.

    A weighted mean is a running sum; every other rule needs all contributions at once and keeps them in float32. Median, trimmed mean
    and multi-Krum count each client once, whatever weight it claims; after mixing every rule does.

    Args:
        policy: names the rule and its parameters.
        origin: where updates start from; the distance of each contribution from it is bounded by `policy.norm_bound`.

    Attributes:
        examples: the sum of the weights that contributions claimed.
    """

    def __init__(self, policy: Policy, origin: Float64 | None = None) -> None:
        self._policy, self._origin = policy, origin
        self._mean = WeightedMean()
        self.examples = 0
        self._rows: list[Float32] = []
        self._weights: list[int] = []

    def add(self, values: npt.NDArray[np.floating], weight: int) -> None:
        """Add one contribution with the examples it claims behind it.

        Raises:
            LayoutMismatch: its shape is not that of the first contribution.
            NonFinite: its distance from the origin is NaN or infinite.
        """
        values = self._within_bound(values)
        self.examples += weight
        if self._streams:
            self._mean.add(values, self._capped(weight))
            return
        if self._rows and self._rows[0].shape != values.shape:
            raise LayoutMismatch(f"values of shape {values.shape} cannot be aggregated with values of shape {self._rows[0].shape}")
        self._rows.append(values.astype(np.float32))
        self._weights.append(self._capped(weight))

    @property
    def _streams(self) -> bool:
        return self._policy.aggregation == "weighted_mean" and not self._policy.nearest_neighbour_mixing

    def _capped(self, weight: int) -> int:
        return min(weight, self._policy.weight_cap)

    def value(self) -> Float64:
        """Return the aggregate, float64, in the shape of the contributions.

        Raises:
            WrongState: there are too few contributions for the rule, or none that carries weight.
            NonFinite: a contribution to a robust rule is NaN or infinite.
        """
        if self._streams:
            return self._mean.value()
        if not self._rows:
            raise WrongState("there is no aggregate of no contributions")
        rows: Rows = np.stack([row.ravel() for row in self._rows])
        weights = np.array(self._weights, dtype=np.float64)
        hostile = ceil_share(self._policy.byzantine_fraction, len(rows))
        if self._policy.nearest_neighbour_mixing:
            rows, weights = nearest_neighbour_mixing(rows, hostile), np.ones(len(rows))
        return RULES[self._policy.aggregation](rows, weights, hostile).reshape(self._rows[0].shape)

    def _within_bound(self, values: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        if self._origin is None or self._policy.norm_bound is None:
            return values
        return self._origin + bounded(values.astype(np.float64) - self._origin, self._policy.norm_bound)
