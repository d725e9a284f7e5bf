"""The drift of predictions, on numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from services.inference.drift import REFERENCE, Drift


def test_shares_and_margin_are_means_until_the_reference_is_complete() -> None:
    drift = Drift(2)
    for probabilities in ([0.9, 0.1], [0.3, 0.7], [0.8, 0.2], [0.6, 0.4]):
        drift.add(np.array(probabilities))
    shift = drift.shift()
    assert shift.shares.tolist() == pytest.approx([0.75, 0.25])
    assert shift.margin == pytest.approx((0.8 + 0.4 + 0.6 + 0.2) / 4)
    assert (shift.share_shift, shift.margin_shift) == (None, None)


def test_unchanged_predictions_are_no_shift() -> None:
    drift = Drift(2)
    for _ in range(REFERENCE):
        drift.add(np.array([0.9, 0.1]))
        drift.add(np.array([0.2, 0.8]))
    shift = drift.shift()
    assert shift.share_shift == pytest.approx(0, abs=0.01)
    assert shift.margin_shift == pytest.approx(0, abs=0.01)


def test_other_labels_with_another_margin_are_a_shift_of_both() -> None:
    drift = Drift(3)
    for _ in range(REFERENCE):
        drift.add(np.array([0.9, 0.05, 0.05]))
    for _ in range(20 * REFERENCE):
        drift.add(np.array([0.2, 0.35, 0.45]))
    shift = drift.shift()
    assert shift.share_shift == pytest.approx(1, abs=1e-6)
    assert shift.margin_shift == pytest.approx(0.1 - 0.85, abs=1e-6)
