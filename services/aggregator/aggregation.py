"""Means of vectors and measures of confusion counts. Pure numpy: knows no rounds, no clock and no storage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ifed.errors import LayoutMismatch, WrongState
from ifed.tensors import Int64

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Measure:
    """How one version did on the clients' held-out examples, all of them together.

    Attributes:
        label_bias: how much too likely each label is there, in log-scores, where the clients told it.
    """

    accuracy: float
    macro_f1: float
    examples: int
    label_bias: tuple[float, ...] | None = None


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


class ConfusionTotal:
    """The sum of clients' confusion counts, shape (truth, prediction), int64."""

    def __init__(self, labels: int) -> None:
        self.counts: Int64 = np.zeros((labels, labels), dtype=np.int64)

    def add(self, counts: Int64) -> None:
        if counts.shape != self.counts.shape:
            raise LayoutMismatch(f"counts of shape {counts.shape} cannot be added to counts of shape {self.counts.shape}")
        self.counts += counts

    def measure(self) -> Measure | None:
        """Accuracy and macro-F1, or None when no client had held-out examples."""
        return measure(self.counts) if self.counts.any() else None


def measure(counts: Int64) -> Measure:
    """Accuracy and macro-F1 of confusion counts, shape (truth, prediction).

    Macro-F1 is the plain mean of `2·TP / (truths + predictions)` over the labels that occur as truth or as prediction.

    Raises:
        WrongState: there are no counts.
    """
    examples = int(counts.sum())
    if examples <= 0:
        raise WrongState("there is no accuracy of no examples")
    hits = np.diagonal(counts).astype(np.float64)
    occurrences = (counts.sum(axis=0) + counts.sum(axis=1)).astype(np.float64)
    present = occurrences > 0
    macro_f1 = float(np.mean(2 * hits[present] / occurrences[present]))
    return Measure(accuracy=float(hits.sum() / examples), macro_f1=macro_f1, examples=examples)
