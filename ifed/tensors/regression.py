"""Ridge regression of the labels on final hidden states, from statistics that clients can sum (arXiv 2405.16240, 2406.01116).

With Z the standardised final states of all clients' examples, (n, d), and T their labels as contrasts, (n, C - 1), the label head is

    W = (ZᵀZ / n + λ I)⁻¹ (ZᵀT / n),

the same for any division of the examples among clients. A contrast is one of C - 1 orthonormal combinations of the labels that sum to zero:
one-hot labels less the labels' shares have no other component, so C - 1 numbers a channel travel instead of C.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import numpy.typing as npt

from ifed.errors import LayoutMismatch, Malformed, NonFinite
from ifed.tensors.values import Float32, Float64

LEAST_DEVIATION = 1e-6  # of a channel that no public text changes
RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0)  # λ, relative to standardised channels
TEMPERATURES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)  # by which the head's scores become logits


@cache
def contrasts(labels: int) -> Float64:
    """Return orthonormal contrasts of the labels, (C - 1, C): each sums to zero (Helmert contrasts)."""
    rows = np.zeros((labels - 1, labels))
    for row in range(labels - 1):
        rows[row, : row + 1] = 1.0
        rows[row, row + 1] = -(row + 1.0)
    matrix: Float64 = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    matrix.flags.writeable = False
    return matrix


@dataclass(frozen=True, slots=True, eq=False)
class LabelHead:
    """A linear classifier of final hidden states φ: the logits of the labels are `weight @ φ + bias`.

    Attributes:
        weight: float32, (C, d), the temperature and the standardisation of φ included.
        bias: float32, (C,), likewise.

    Raises:
        LayoutMismatch: the shapes do not fit each other.
        NonFinite: NaN or Inf among the values.
    """

    weight: Float32
    bias: Float32

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or self.bias.shape != self.weight.shape[:1]:
            raise LayoutMismatch(
                f"a label head has a weight (labels, d) and a bias (labels,), got {self.weight.shape}, {self.bias.shape}"
            )
        if not (np.isfinite(self.weight).all() and np.isfinite(self.bias).all()):
            raise NonFinite("a label head holds values that are NaN or infinite")

    def log_probabilities(self, states: npt.NDArray[np.floating]) -> Float32:
        """Return the log-probabilities of the labels, float32, (n, C), for final states (n, d)."""
        logits = states.astype(np.float32) @ self.weight.T + self.bias
        return np.asarray(log_softmax(logits.astype(np.float64)), dtype=np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Standardization:
    """Mean and deviation of each channel of the final state over public texts in the task's template, with the base model.

    Attributes:
        mean: float32, (d,).
        deviation: float32, (d,), above 0.

    Raises:
        LayoutMismatch: the shapes do not fit each other.
        NonFinite: NaN or Inf among the values, or a deviation that is not above 0.
    """

    mean: Float32
    deviation: Float32

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.mean.shape != self.deviation.shape:
            raise LayoutMismatch(
                f"mean and deviation of the final state have one axis, got {self.mean.shape}, {self.deviation.shape}"
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.deviation).all() and (self.deviation > 0).all()):
            raise NonFinite("mean and deviation of the final state are finite, and a deviation is above 0")

    @classmethod
    def of(cls, states: npt.NDArray[np.floating]) -> Standardization:
        """Return the statistics of public texts' final states, (n, d)."""
        deviation = states.std(axis=0, dtype=np.float64) + LEAST_DEVIATION
        return cls(states.mean(axis=0, dtype=np.float64).astype(np.float32), deviation.astype(np.float32))

    def apply(self, states: npt.NDArray[np.floating]) -> Float64:
        """Return final states with mean 0 and deviation 1 over the public texts, float64."""
        return (states.astype(np.float64) - self.mean) / self.deviation

    def head(self, solution: Float64, shares: Float64, temperature: float) -> LabelHead:
        """Return the head for raw final states.

        Args:
            solution: W in contrasts, (C - 1, d), for standardised states.
            shares: of the labels, (C,), the scores of a state at the public mean.
            temperature: T; the logits are T times the scores.
        """
        weight = contrasts(len(shares)).T @ solution / self.deviation
        bias = shares - weight @ self.mean
        return LabelHead((temperature * weight).astype(np.float32), (temperature * bias).astype(np.float32))


class RegressionData:
    """One client's examples for the regression: what it sends about them is a mean over its examples.

    Args:
        states: standardised final states, (n, d).
        labels: of each, 0 to C - 1.
        shares: of the labels among all clients' examples, (C,).

    Raises:
        Malformed: there are no examples.
    """

    def __init__(self, states: Float64, labels: Sequence[int], shares: Float64) -> None:
        if not len(states):
            raise Malformed("a label head is solved from training examples; there are none")
        self._states, self._labels, self._shares = states, np.asarray(labels), shares

    @cached_property
    def moment(self) -> Float64:
        """TᵀZ / n, (C - 1, d)."""
        by_label = np.zeros((len(self._shares), self._states.shape[1]))
        np.add.at(by_label, self._labels, self._states)
        of_labels = by_label - self._shares[:, None] * self._states.sum(axis=0)
        return np.asarray(contrasts(len(self._shares)) @ of_labels / len(self._states))

    def product(self, directions: npt.NDArray[np.floating]) -> Float64:
        """Return (ZᵀZ / n) p for each of the directions, (m, d)."""
        return np.asarray((directions.astype(np.float64) @ self._states.T) @ self._states / len(self._states))

    def gram(self) -> Float64:
        """Return the upper triangle of ZᵀZ / n, row after row, (d (d + 1) / 2,)."""
        full = self._states.T @ self._states / len(self._states)
        return np.asarray(full[np.triu_indices(len(full))])


def full_matrix(triangle: npt.NDArray[np.floating], size: int) -> Float64:
    """Return the symmetric matrix, (d, d), of the triangle that `RegressionData.gram` returns.

    Raises:
        LayoutMismatch: it does not have d (d + 1) / 2 numbers.
    """
    if triangle.shape != (size * (size + 1) // 2,):
        raise LayoutMismatch(f"a symmetric matrix of {size} channels has {size * (size + 1) // 2} numbers, got {triangle.shape}")
    full = np.zeros((size, size))
    full[np.triu_indices(size)] = triangle
    return full + np.triu(full, 1).T


def log_likelihoods(
    states: Float64, labels: Sequence[int], solutions: npt.NDArray[np.floating], shares: Float64, temperatures: Sequence[float]
) -> Float64:
    """Return the sum of the log-likelihoods of the labels for each candidate and temperature, (candidates, temperatures).

    Args:
        states: standardised final states of held-out examples, (n, d).
        solutions: candidates, (candidates, C - 1, d).
    """
    sums = np.zeros((len(solutions), len(temperatures)))
    rows = np.arange(len(states))
    for place, solution in enumerate(solutions):
        scores = states @ solution.astype(np.float64).T @ contrasts(len(shares)) + shares
        for column, temperature in enumerate(temperatures):
            sums[place, column] = log_softmax(temperature * scores)[rows, np.asarray(labels, dtype=np.int64)].sum()
    return sums


def log_softmax(logits: Float64) -> Float64:
    """Return the logarithm of the softmax over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
