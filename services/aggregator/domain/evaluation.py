"""Means of vectors and measures of confusion counts. Pure numpy: knows no rounds, no clock and no storage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ifed.errors import LayoutMismatch, WrongState
from ifed.tensors.values import Int64

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """How one version did on the clients' held-out examples, all of them together.

    Attributes:
        label_bias: how much too likely each label is there, in log-scores, where the clients told it.
    """

    accuracy: float
    macro_f1: float
    examples: int
    label_bias: tuple[float, ...] | None = None


class ConfusionMatrix:
    """The sum of clients' confusion counts, shape (truth, prediction), int64."""

    def __init__(self, labels: int) -> None:
        self.counts: Int64 = np.zeros((labels, labels), dtype=np.int64)

    def add(self, counts: Int64) -> None:
        if counts.shape != self.counts.shape:
            raise LayoutMismatch(f"counts of shape {counts.shape} cannot be added to counts of shape {self.counts.shape}")
        self.counts += counts

    def measure(self) -> EvaluationResult | None:
        """Accuracy and macro-F1, or None when no client had held-out examples."""
        return measure(self.counts) if self.counts.any() else None


def measure(counts: Int64) -> EvaluationResult:
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
    return EvaluationResult(accuracy=float(hits.sum() / examples), macro_f1=macro_f1, examples=examples)
