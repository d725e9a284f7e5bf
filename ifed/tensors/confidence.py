"""Confidence bins: texts by the probability of their most probable label, whose sum over clients gives calibration error and abstention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ifed.errors import LayoutMismatch, Malformed
from ifed.tensors.values import Float32

BINS = 10
EDGES = np.arange(1, BINS) / BINS  # a text of exactly 0.7 is in the bin that begins there
STEPS = 65_535  # between the ends of a bin, on the wire


@dataclass(frozen=True, slots=True)
class ConfidenceBin:
    """The texts of one bin.

    Attributes:
        texts: their number.
        correct: how many of them have their most probable label.
        confidence: the sum of the probabilities of their most probable labels.
    """

    texts: int = 0
    correct: int = 0
    confidence: float = 0.0

    def __add__(self, other: ConfidenceBin) -> ConfidenceBin:
        return ConfidenceBin(self.texts + other.texts, self.correct + other.correct, self.confidence + other.confidence)


@dataclass(frozen=True, slots=True)
class ConfidenceBins:
    """Ten equal bins of the probability of the most probable label: bin m is from m / 10 to less than (m + 1) / 10, and 1 is in the last."""

    bins: tuple[ConfidenceBin, ...] = (ConfidenceBin(),) * BINS

    @classmethod
    def of(cls, true_labels: Sequence[int], scores: Float32) -> Self:
        """Return the bins of log-probabilities, (n, C), normalised over the labels.

        The probabilities are those of float32, as the inference service returns them.
        """
        if not len(scores):
            return cls()
        confidence = np.minimum(np.exp(scores.max(axis=1)), 1).astype(np.float64)
        correct = scores.argmax(axis=1) == np.asarray(true_labels)
        places = np.searchsorted(EDGES, confidence, side="right")
        texts, right, sums = (np.bincount(places, weights=weights, minlength=BINS) for weights in (None, correct, confidence))
        return cls(tuple(ConfidenceBin(int(n), int(k), float(s)) for n, k, s in zip(texts, right, sums, strict=True)))

    def __add__(self, other: ConfidenceBins) -> ConfidenceBins:
        return ConfidenceBins(tuple(mine + theirs for mine, theirs in zip(self.bins, other.bins, strict=True)))

    @property
    def texts(self) -> int:
        """The number of texts in all bins."""
        return sum(part.texts for part in self.bins)

    @property
    def correct(self) -> int:
        """The number of texts in all bins that have their most probable label."""
        return sum(part.correct for part in self.bins)

    @property
    def expected_calibration_error(self) -> float | None:
        """The mean over texts of the distance between accuracy and mean confidence of their bin (arXiv 1706.04599, equation 3).

        None without texts.
        """
        if not self.texts:
            return None
        return sum(abs(part.correct - part.confidence) for part in self.bins) / self.texts

    def answered(self, first: int) -> tuple[int, int]:
        """Return how many texts have a confidence of at least `first / 10`, and how many of these are correct."""
        above = self.bins[first:]
        return sum(part.texts for part in above), sum(part.correct for part in above)

    def packed(self) -> npt.NDArray[np.uint16] | npt.NDArray[np.uint32]:
        """Return the bins as they travel: uint16, or uint32 where a number is too large for it, (3, k), of the last k bins.

        The bins before the first that has a text are left out. The rows are the numbers of texts, of correct ones, and where in its bin
        the mean confidence lies, in 65,535ths of the bin.
        """
        first = next((place for place, part in enumerate(self.bins) if part.texts), BINS - 1)
        rows = [(part.texts, part.correct, _steps(place, part)) for place, part in enumerate(self.bins)][first:]
        small = max(texts for texts, _, _ in rows) <= np.iinfo(np.uint16).max
        return np.array(rows, dtype=np.uint16).T if small else np.array(rows, dtype=np.uint32).T

    @classmethod
    def unpacked(cls, packed: npt.NDArray[Any]) -> Self:
        """Read what `packed` returned; the mean confidence of a bin is then exact to 1e-6.

        Raises:
            LayoutMismatch: another shape.
            Malformed: more correct texts than texts, or a mean outside its bin.
        """
        if packed.ndim != 2 or packed.shape[0] != 3 or not 1 <= packed.shape[1] <= BINS:
            raise LayoutMismatch(f"confidence bins are three rows of 1 to {BINS} numbers, got shape {packed.shape}")
        texts, correct, steps = packed.astype(np.int64)
        if (correct > texts).any() or (steps > STEPS).any() or (steps[texts == 0] > 0).any():
            raise Malformed(
                f"a confidence bin has at most as many correct texts as texts, and a mean of 0 to {STEPS} between its ends"
            )
        first = BINS - packed.shape[1]
        means = (np.arange(first, BINS) + steps / STEPS) / BINS
        filled = zip(texts.tolist(), correct.tolist(), (texts * means).tolist(), strict=True)
        return cls((ConfidenceBin(),) * first + tuple(ConfidenceBin(*part) for part in filled))


def _steps(place: int, part: ConfidenceBin) -> int:
    if not part.texts:
        return 0
    return round(min(max(part.confidence / part.texts * BINS - place, 0.0), 1.0) * STEPS)
