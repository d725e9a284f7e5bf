"""Drift of a task's predictions without true labels: how label shares and margins change while the adapter does not."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ifed.tensors.values import Float64

REFERENCE = 200
WINDOW = 200


@dataclass(frozen=True, slots=True)
class Shift:
    """The difference between recent predictions and the first ones after a promotion.

    Attributes:
        shares: recent share of predictions of each label, float64, shape (labels,); they sum to 1.
        margin: recent mean difference between the highest and the second highest probability, 0 to 1.
        share_shift: total variation distance ½ Σ |p - q| to the shares of the reference, 0 to 1; None until the reference is complete.
        margin_shift: the margin minus that of the reference, -1 to 1; None until the reference is complete.
    """

    shares: Float64
    margin: float
    share_shift: float | None
    margin_shift: float | None


@dataclass(slots=True)
class Drift:
    """Running means over the predictions of one adapter version.

    The first `REFERENCE` predictions after its promotion are the reference. Later ones enter an exponentially weighted mean with
    weight 1/`WINDOW`.
    """

    labels: int
    seen: int = 0
    _reference_shares: Float64 = field(init=False)
    _shares: Float64 = field(init=False)
    _reference_margin: float = 0.0
    _margin: float = 0.0

    def __post_init__(self) -> None:
        self._reference_shares, self._shares = np.zeros(self.labels), np.zeros(self.labels)

    def add(self, probabilities: npt.NDArray[np.floating]) -> None:
        """Add one prediction: probabilities over the labels, shape (labels,)."""
        second, best = np.partition(probabilities, -2)[-2:]
        one_hot = np.zeros(self.labels)
        one_hot[int(np.argmax(probabilities))] = 1.0
        margin = float(best - second)
        self.seen += 1
        weight = 1 / min(self.seen, WINDOW)
        self._shares += weight * (one_hot - self._shares)
        self._margin += weight * (margin - self._margin)
        if self.seen <= REFERENCE:
            self._reference_shares, self._reference_margin = self._shares.copy(), self._margin

    def shift(self) -> Shift:
        """Return the shift after all predictions so far."""
        if self.seen < REFERENCE:
            return Shift(self._shares, self._margin, None, None)
        distance = float(np.abs(self._shares - self._reference_shares).sum() / 2)
        return Shift(self._shares, self._margin, distance, self._margin - self._reference_margin)
