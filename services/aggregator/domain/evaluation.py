"""How well a version does: accuracy and macro-F1 of confusion counts, calibration error and abstention of confidence bins."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ifed.errors import LayoutMismatch, WrongState
from ifed.messages.rounds import Reading, ReadingResult, ThresholdResult
from ifed.tensors.confidence import BINS, ConfidenceBins
from ifed.tensors.confusion import Counts
from ifed.tensors.values import Int64

THRESHOLDS = range(5, BINS)  # tenths: with two labels, the highest probability is never below 0.5


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """How well one version does on the held-out examples of all clients together.

    Attributes:
        examples: the number of held-out examples.
        label_bias: how much too likely each label is, in log-scores; None where clients did not send label probabilities.
        log_likelihood: mean log-probability of the true label; None where clients did not send it.
        reading: how the labels were read; None where a task has one way only.
        readings: every way of reading them, where a task chooses between several.
        labels: the result of each label; empty where they were not stored, or not read from the storage.
        confidence: the examples by the probability of their most probable label; None where a client did not send it.
    """

    accuracy: float
    macro_f1: float
    examples: int
    label_bias: tuple[float, ...] | None = None
    log_likelihood: float | None = None
    reading: Reading | None = None
    readings: tuple[ReadingResult, ...] = ()
    labels: tuple[LabelResult, ...] = ()
    confidence: ConfidenceBins | None = None

    @property
    def expected_calibration_error(self) -> float | None:
        """As of the confidence bins; None where there are none."""
        return None if self.confidence is None else self.confidence.expected_calibration_error

    def confirms(self, stored: EvaluationResult) -> bool:
        """Return whether this is the stored evaluation; what an earlier release did not store is not compared."""
        return replace(self, labels=self.labels if stored.labels else ()) == stored


@dataclass(frozen=True, slots=True)
class LabelResult:
    """How well a version recognises one label.

    Attributes:
        texts: held-out texts with this label.
        predicted: held-out texts that got this label.
        correct: texts of both.
    """

    texts: int
    predicted: int
    correct: int

    @property
    def precision(self) -> float | None:
        """The share of `predicted` that is right; None if nothing got this label."""
        return self.correct / self.predicted if self.predicted else None

    @property
    def recall(self) -> float | None:
        """The share of `texts` that got this label; None if no text has it."""
        return self.correct / self.texts if self.texts else None


class ConfusionMatrix:
    """The sum of the confusion counts of clients.

    Attributes:
        counts: shape (truth, prediction), int64.
    """

    def __init__(self, labels: int) -> None:
        self.counts: Int64 = np.zeros((labels, labels), dtype=np.int64)

    def add(self, counts: Counts) -> None:
        """Add the counts of one client.

        Raises:
            LayoutMismatch: they are for another number of labels.
        """
        if counts.shape != self.counts.shape:
            raise LayoutMismatch(f"counts of shape {counts.shape} cannot be added to counts of shape {self.counts.shape}")
        self.counts += counts

    def measure(self) -> EvaluationResult | None:
        """Return accuracy and macro-F1, or None when no client has held-out examples."""
        return measure(self.counts) if self.counts.any() else None


def measure(counts: Int64) -> EvaluationResult:
    """Return accuracy and macro-F1 of confusion counts, shape (truth, prediction).

    Macro-F1 is the plain mean of `2·TP / (truths + predictions)` over the labels that occur as truth or as prediction.

    Raises:
        WrongState: all counts are 0.
    """
    examples = int(counts.sum())
    if examples <= 0:
        raise WrongState("there is no accuracy of no examples")
    hits = np.diagonal(counts).astype(np.float64)
    occurrences = (counts.sum(axis=0) + counts.sum(axis=1)).astype(np.float64)
    present = occurrences > 0
    macro_f1 = float(np.mean(2 * hits[present] / occurrences[present]))
    return EvaluationResult(accuracy=float(hits.sum() / examples), macro_f1=macro_f1, examples=examples)


def label_results(counts: Int64) -> list[LabelResult]:
    """Return the result of each label, from confusion counts of shape (truth, prediction)."""
    columns = zip(counts.sum(axis=1), counts.sum(axis=0), np.diagonal(counts), strict=True)
    return [LabelResult(int(texts), int(predicted), int(correct)) for texts, predicted, correct in columns]


def threshold_results(confidence: ConfidenceBins) -> list[ThresholdResult]:
    """Return what would be answered, and how well, if a task abstained below 0.5, 0.6, … 0.9.

    Raises:
        WrongState: there are no texts in the bins.
    """
    if not confidence.texts:
        raise WrongState("there is no share of no texts")
    counted = [(first, *confidence.answered(first)) for first in THRESHOLDS]
    return [
        ThresholdResult(
            abstain_below=first / BINS, answered=answered / confidence.texts, accuracy=correct / answered if answered else None
        )
        for first, answered, correct in counted
    ]
