"""Removing a label prior from scores leaves log-probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifed.errors import LayoutMismatch
from ifed.tensors.label_prior import bias_of, without_bias


def test_a_label_that_is_always_likely_no_longer_wins_for_that_reason() -> None:
    scores = np.log(np.array([0.7, 0.3], np.float32))
    corrected = without_bias(scores, [float(np.log(0.9)), float(np.log(0.1))])
    assert np.exp(corrected) == pytest.approx([(7 / 9) / (7 / 9 + 3), 3 / (7 / 9 + 3)])


def test_a_clearly_separated_label_is_not_raised() -> None:
    scores = np.log(np.array([[0.999, 0.001], [0.3, 0.7]]))  # the mean of the logarithms, -0.6 and -3.6, would raise the second
    assert bias_of(np.exp(scores).mean(axis=0), np.array([5, 5])) == pytest.approx(np.log([2 * 0.6495, 2 * 0.3505]))


def test_a_label_that_is_never_likely_has_a_finite_bias() -> None:
    assert bias_of(np.array([1.0, 0.0]), np.array([7, 7])) == pytest.approx([np.log(2), np.log(2e-6)])


def test_a_label_as_likely_as_it_is_frequent_has_no_bias_and_one_that_no_text_carries_a_finite_one() -> None:
    assert bias_of(np.array([0.8, 0.2]), np.array([7, 1])) == pytest.approx([0.0, 0.0])
    assert bias_of(np.array([0.8, 0.2]), np.array([3, 0])) == pytest.approx([0.0, 0.0])


def test_scores_matched_to_the_shares_keep_a_frequent_label_frequent() -> None:
    scores = np.log(np.array([0.5, 0.5], np.float32))  # a model that favours neither, where three of four texts carry the first
    corrected = without_bias(scores, bias_of(np.array([0.5, 0.5]), np.array([74, 24])))
    assert np.exp(corrected) == pytest.approx([0.75, 0.25])


def test_without_a_bias_scores_are_unchanged() -> None:
    scores = np.array([-0.1, -2.0], np.float32)
    assert without_bias(scores, None) is scores


def test_a_bias_of_other_labels_is_refused() -> None:
    with pytest.raises(LayoutMismatch):
        without_bias(np.zeros(2, np.float32), [0.0, 0.0, 0.0])


@given(st.lists(st.tuples(st.floats(-50, 0, width=32), st.floats(-50, 0)), min_size=2, max_size=6))
def test_corrected_scores_are_log_probabilities(pairs: list[tuple[float, float]]) -> None:
    scores = np.array([score for score, _ in pairs], np.float32)
    corrected = without_bias(scores, [bias for _, bias in pairs])
    assert corrected.dtype == np.float32
    assert np.exp(corrected.astype(np.float64)).sum() == pytest.approx(1, abs=1e-5)
