"""Calibration error and abstention from bins that clients add up, against numpy on the pooled texts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ifed.errors import LayoutMismatch, Malformed
from ifed.messages.bodies import HeldOutCounts, UpdateBody
from ifed.messages.rounds import ContributionMeta
from ifed.tensors.confidence import BINS, ConfidenceBin, ConfidenceBins
from ifed.tensors.regression import log_softmax
from ifed.tensors.values import Float32

META = ContributionMeta(fingerprint="f" * 64, examples=100, version=0)


def texts(count: int, labels: int, seed: int) -> tuple[list[int], Float32]:
    """Return true labels, and log-probabilities that are surer than they are right."""
    generator = np.random.default_rng(seed)
    truths = generator.integers(labels, size=count)
    logits = generator.normal(size=(count, labels)) + 1.5 * np.eye(labels)[truths]
    return truths.tolist(), np.asarray(log_softmax(2 * logits), dtype=np.float32)


def pooled_error(truths: list[int], scores: Float32) -> float:
    """Return the expected calibration error of texts that are all in one place."""
    probabilities = np.exp(scores).astype(np.float64)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == truths
    members = [(confidence >= m / BINS) & ((confidence < (m + 1) / BINS) | (m == BINS - 1)) for m in range(BINS)]
    gaps = [abs(correct[own].mean() - confidence[own].mean()) * own.sum() for own in members if own.any()]
    return float(sum(gaps) / len(truths))


def confusion_of(truths: list[int], scores: Float32) -> np.ndarray:
    counts = np.zeros((scores.shape[1],) * 2, np.int64)
    np.add.at(counts, (truths, scores.argmax(axis=1)), 1)
    return counts


def received(truths: list[int], scores: Float32) -> ConfidenceBins:
    """Return the bins that the aggregator reads from the body of a client with these held-out texts."""
    counts = HeldOutCounts(confusion_of(truths, scores), confidence=ConfidenceBins.of(truths, scores))
    read = UpdateBody.from_bytes(UpdateBody.of(counts, META).to_bytes()).confidence
    assert read is not None
    return read


@settings(max_examples=30)
@given(st.integers(2, 20), st.lists(st.integers(1, 120), min_size=1, max_size=5), st.integers(0, 10_000))
def test_bins_added_over_clients_give_the_error_and_the_abstentions_of_the_pooled_texts(
    labels: int, sizes: list[int], seed: int
) -> None:
    clients = [texts(size, labels, seed + place) for place, size in enumerate(sizes)]
    truths = [label for own, _ in clients for label in own]
    scores = np.concatenate([rows for _, rows in clients])
    total = sum((ConfidenceBins.of(*client) for client in clients), ConfidenceBins())
    over_the_wire = sum((received(*client) for client in clients), ConfidenceBins())
    assert total.expected_calibration_error == pytest.approx(pooled_error(truths, scores), abs=1e-12)
    assert over_the_wire.expected_calibration_error == pytest.approx(pooled_error(truths, scores), abs=1e-6)
    confidence, correct = np.exp(scores.max(axis=1)).astype(np.float64), scores.argmax(axis=1) == truths
    for tenth in range(BINS):
        answered = confidence >= tenth / BINS
        assert over_the_wire.answered(tenth) == (answered.sum(), (answered & correct).sum())


def test_a_calibration_error_worked_out_by_hand() -> None:
    # Two texts at 0.75 of which one is right, two at 0.9 that are right: (2 · |0.5 - 0.75| + 2 · |1 - 0.9|) / 4.
    scores = np.log(np.array([[0.75, 0.25], [0.75, 0.25], [0.9, 0.1], [0.1, 0.9]]))
    bins = ConfidenceBins.of([0, 1, 0, 1], scores.astype(np.float32))
    assert bins.expected_calibration_error == pytest.approx(0.175)
    assert (bins.answered(8), bins.answered(5)) == ((2, 2), (4, 3))
    assert ConfidenceBins().expected_calibration_error is None


def test_a_confidence_between_two_bins_is_in_the_upper_one() -> None:
    bins = ConfidenceBins.of([0, 0], np.log(np.array([[0.5, 0.5], [1.0, 1e-9]])).astype(np.float32))
    assert [part.texts for part in bins.bins] == [0, 0, 0, 0, 0, 1, 0, 0, 0, 1]


@pytest.mark.parametrize(("labels", "most"), [(2, 100), (4, 120)])
def test_an_update_grows_by_less_than_120_bytes(labels: int, most: int) -> None:
    truths, scores = texts(100, labels, 5)
    with_bins = HeldOutCounts(confusion_of(truths, scores), confidence=ConfidenceBins.of(truths, scores))
    without = HeldOutCounts(with_bins.confusion)
    assert len(UpdateBody.of(with_bins, META).to_bytes()) - len(UpdateBody.of(without, META).to_bytes()) < most


def test_counts_beyond_16_bits_travel_in_32() -> None:
    many = ConfidenceBins((ConfidenceBin(),) * 9 + (ConfidenceBin(70_000, 69_000, 66_500.0),))
    assert many.packed().dtype == np.uint32
    assert ConfidenceBins.unpacked(many.packed()).expected_calibration_error == pytest.approx(2_500 / 70_000, abs=1e-6)


@pytest.mark.parametrize(
    ("rows", "refusal"),
    [
        ([[8], [9], [0]], Malformed),
        ([[0], [0], [7]], Malformed),
        ([[8], [6], [70_000]], Malformed),
        ([[9], [6], [0]], Malformed),
        ([[8], [5], [0]], Malformed),
        ([[8], [6]], LayoutMismatch),
        ([[0] * 11, [0] * 11, [0] * 11], LayoutMismatch),
        ([8, 6, 0], LayoutMismatch),
    ],
)
def test_bins_that_cannot_be_those_of_the_confusion_counts_are_refused(rows: object, refusal: type[Exception]) -> None:
    class Sent(ConfidenceBins):
        def packed(self) -> np.ndarray:
            return np.array(rows, np.uint32)

    body = UpdateBody(None, np.array([[3, 1], [1, 3]]), META, confidence=Sent()).to_bytes()
    with pytest.raises(refusal):
        UpdateBody.from_bytes(body)


def test_a_body_without_bins_is_read_as_before() -> None:
    assert UpdateBody.from_bytes(UpdateBody(None, np.array([[3, 1], [1, 3]]), META).to_bytes()).confidence is None
