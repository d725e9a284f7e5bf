"""Whether a task's answers change although its adapter does not: shares of labels and mean margin, no true labels. Pure numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ifed.tensors.values import Float64

REFERENCE = 200
WINDOW = 200


@dataclass(frozen=True, slots=True)
class Shift:
    """How the latest answers differ from the first after the promotion.

    Attributes:
        shares: predicted share of each label of late; they sum to 1.
        margin: mean difference of late between the best and the second best probability, 0 to 1.
        share_shift: total variation distance to the first answers' shares, 0 to 1: ½ Σ |p - q|; None while those are gathered.
        margin_shift: the margin minus the first answers'; likewise.
    """

    shares: Float64
    margin: float
    share_shift: float | None
    margin_shift: float | None


@dataclass(slots=True)
class Drift:
    """Counts of one version of one task. The first `REFERENCE` answers after its promotion are what later ones are held against.

    Later answers count with a weight that falls by 1/`WINDOW` with each answer after them.
    """

    labels: int
    seen: int = 0
    _first_shares: Float64 = field(init=False)
    _shares: Float64 = field(init=False)
    _first_margin: float = 0.0
    _margin: float = 0.0

    def __post_init__(self) -> None:
        self._first_shares, self._shares = np.zeros(self.labels), np.zeros(self.labels)

    def add(self, probabilities: npt.NDArray[np.floating]) -> None:
        """One answer: probabilities over the labels, shape (labels,)."""
        second, best = np.partition(probabilities, -2)[-2:]
        one = np.zeros(self.labels)
        one[int(np.argmax(probabilities))] = 1.0
        margin = float(best - second)
        self.seen += 1
        weight = 1 / min(self.seen, WINDOW)
        self._shares += weight * (one - self._shares)
        self._margin += weight * (margin - self._margin)
        if self.seen <= REFERENCE:
            self._first_shares, self._first_margin = self._shares.copy(), self._margin

    def shift(self) -> Shift:
        """The state after all answers so far."""
        if self.seen < REFERENCE:
            return Shift(self._shares, self._margin, None, None)
        distance = float(np.abs(self._shares - self._first_shares).sum() / 2)
        return Shift(self._shares, self._margin, distance, self._margin - self._first_margin)
