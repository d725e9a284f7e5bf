"""Means and measures, against numbers worked out by hand, and their properties."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ifed.errors import LayoutMismatch, WrongState
from ifed.messages.bodies import HeldOutCounts
from ifed.messages.enums import RoundKind
from ifed.messages.rounds import ThresholdResult
from ifed.tensors.confidence import ConfidenceBin, ConfidenceBins
from services.aggregator.aggregation.accumulators import ContextAccumulator, EvaluationAccumulator, RoundAccumulator
from services.aggregator.aggregation.rules import WeightedMean
from services.aggregator.domain.contribution import Contribution
from services.aggregator.domain.evaluation import (
    ConfusionMatrix,
    EvaluationResult,
    LabelResult,
    label_results,
    measure,
    threshold_results,
)
from testing.factories import context_contribution, policy, round_, update_contribution


def mean(*parts: tuple[list[float], int]) -> list[float]:
    total = WeightedMean()
    for values, weight in parts:
        total.add(np.array(values, dtype=np.float32), weight)
    return list(total.value())


def test_the_mean_is_weighted_by_examples() -> None:
    assert mean(([1.0], 0), ([3.0], 4)) == [(0 * 1 + 4 * 3) / 4]
    assert mean(([1.0, 2.0], 1), ([3.0, 6.0], 3)) == [(1 + 9) / 4, (2 + 18) / 4]


def test_a_mean_of_no_weight_is_refused_before_dividing() -> None:
    with pytest.raises(WrongState):
        mean()
    with pytest.raises(WrongState):
        mean(([1.0], 0))


def test_values_of_another_shape_are_refused() -> None:
    with pytest.raises(LayoutMismatch):
        mean(([1.0], 1), ([1.0, 2.0], 1))


def test_the_sum_is_kept_in_float64() -> None:
    assert mean(([1.0], 1), ([1e-8], 1)) == [(1.0 + float(np.float32(1e-8))) / 2]


def test_accuracy_and_macro_f1_are_those_worked_out_by_hand() -> None:
    # truth 0: 3 right, 1 called 1; truth 1: 2 called 0, 2 right. F1 of 0: 2·3/(4+5); of 1: 2·2/(4+3).
    assert measure(np.array([[3, 1], [2, 2]])) == EvaluationResult(5 / 8, (6 / 9 + 4 / 7) / 2, 8)


def test_a_label_that_never_occurs_does_not_count_in_macro_f1() -> None:
    assert measure(np.array([[4, 0, 0], [0, 0, 0], [0, 0, 2]])) == EvaluationResult(1.0, 1.0, 6)


def test_no_held_out_examples_give_no_measure() -> None:
    assert ConfusionMatrix(2).measure() is None
    with pytest.raises(WrongState):
        measure(np.zeros((2, 2), dtype=np.int64))


def test_confusion_counts_of_all_clients_are_added() -> None:
    total = ConfusionMatrix(2)
    for counts in ([[3, 1], [0, 0]], [[0, 0], [2, 2]]):
        total.add(np.array(counts))
    assert total.measure() == measure(np.array([[3, 1], [2, 2]]))


vectors = arrays.arrays(np.float32, 4, elements=st.floats(-100, 100, width=32))
weighted = st.lists(st.tuples(vectors, st.integers(1, 1000)), min_size=1, max_size=8)


@given(weighted)
def test_the_mean_lies_between_the_least_and_the_greatest(parts: list[tuple[np.ndarray, int]]) -> None:
    actual = np.array(mean(*parts))
    stacked = np.stack([values for values, _ in parts]).astype(np.float64)
    assert (actual >= stacked.min(axis=0) - 1e-9).all()
    assert (actual <= stacked.max(axis=0) + 1e-9).all()


@given(st.lists(st.tuples(st.floats(-10, 10, width=32), st.integers(1, 500)), min_size=1, max_size=6), st.randoms())
def test_the_aggregate_is_the_same_bytes_whatever_order_contributions_came_in(
    parts: list[tuple[float, int]], shuffler: random.Random
) -> None:
    sent = [context_contribution(f"client-{index}", value, examples=weight) for index, (value, weight) in enumerate(parts)]
    arrived = shuffler.sample(sent, len(sent))
    assert context_of(sent) == context_of(sorted(arrived, key=lambda contribution: contribution.entry.client))


def context_of(sent: list[Contribution]) -> bytes | None:
    accumulator = ContextAccumulator("sentiment", 1, policy())
    for contribution in sent:
        accumulator.add(contribution.entry.client, contribution.entry.weight, contribution.body)
    return accumulator.summed().body


def summed(kind: RoundKind, sent: list[Contribution]) -> bytes | None:
    accumulator = RoundAccumulator(round_(kind=kind), 2, policy())
    for contribution in sent:
        accumulator.add(contribution.entry.weight, contribution.body)
    return accumulator.summed().body


@given(arrays.arrays(np.int64, (3, 3), elements=st.integers(0, 50)))
def test_accuracy_and_macro_f1_lie_between_none_and_all(counts: np.ndarray) -> None:
    if counts.any():
        evaluation = measure(counts)
        assert 0.0 <= evaluation.accuracy <= 1.0
        assert 0.0 <= evaluation.macro_f1 <= 1.0
        assert evaluation.examples == counts.sum()


def test_an_evaluation_gives_a_measure_and_no_aggregate() -> None:
    assert summed(RoundKind.EVALUATION, [update_contribution("a", None)]) is None


def test_precision_divides_by_what_was_predicted_and_recall_by_what_was_true() -> None:
    results = label_results(np.array([[3, 1, 0], [2, 4, 0], [1, 1, 0]]))
    assert results == [LabelResult(4, 6, 3), LabelResult(6, 6, 4), LabelResult(2, 0, 0)]
    assert [(result.precision, result.recall) for result in results] == [(3 / 6, 3 / 4), (4 / 6, 4 / 6), (None, 0.0)]
    assert label_results(np.array([[0, 1], [0, 1]]))[0].recall == 0.0
    assert label_results(np.array([[0, 0], [1, 1]]))[0].recall is None


def binned(*parts: ConfidenceBin) -> ConfidenceBins:
    """Return bins of which the uppermost are `parts`."""
    return ConfidenceBins((ConfidenceBin(),) * (10 - len(parts)) + parts)


def test_a_threshold_answers_the_texts_that_reach_it() -> None:
    results = threshold_results(binned(ConfidenceBin(2, 1, 1.7), ConfidenceBin(6, 6, 5.8)))
    everything = [ThresholdResult(abstain_below=tenth / 10, answered=1.0, accuracy=7 / 8) for tenth in (5, 6, 7, 8)]
    assert results == [*everything, ThresholdResult(abstain_below=0.9, answered=6 / 8, accuracy=1.0)]
    assert threshold_results(binned(ConfidenceBin(2, 1, 1.7), ConfidenceBin()))[-1].accuracy is None
    with pytest.raises(WrongState):
        threshold_results(ConfidenceBins())


def test_a_calibration_error_is_unknown_unless_every_client_with_texts_sent_its_bins() -> None:
    counts, bins = np.array([[3, 1], [1, 3]]), binned(ConfidenceBin(8, 6, 7.6))
    everyone, somebody = EvaluationAccumulator(2), EvaluationAccumulator(2)
    for sent in (HeldOutCounts(counts, confidence=bins), HeldOutCounts(counts, confidence=bins), HeldOutCounts(0 * counts)):
        everyone.add(sent)
    for sent in (HeldOutCounts(counts, confidence=bins), HeldOutCounts(counts)):
        somebody.add(sent)
    known, unknown = everyone.result(), somebody.result()
    assert known is not None
    assert unknown is not None
    assert known.expected_calibration_error == pytest.approx(0.95 - 0.75)
    assert (unknown.confidence, unknown.expected_calibration_error) == (None, None)
    assert known.labels == unknown.labels == (LabelResult(8, 8, 6), LabelResult(8, 8, 6))


def test_a_replay_confirms_what_an_earlier_release_stored_without_labels() -> None:
    replayed = EvaluationResult(0.75, 0.75, 8, labels=(LabelResult(4, 4, 3), LabelResult(4, 4, 3)))
    assert replayed.confirms(replayed)
    assert replayed.confirms(EvaluationResult(0.75, 0.75, 8))
    assert not replayed.confirms(EvaluationResult(0.8, 0.75, 8))
    assert not replayed.confirms(EvaluationResult(0.75, 0.75, 8, labels=(LabelResult(4, 4, 4), LabelResult(4, 4, 2))))
