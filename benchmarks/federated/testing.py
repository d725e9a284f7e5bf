"""What a version of the coefficients does on the common test set, also with the label prior that the clients tell. Runs no rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.federated.parties import Federation
from benchmarks.federated.wire import Measured
from ifed.modeling.scoring import confusion
from ifed.tasks import Policy
from ifed.tensors import Coefficients, Float32, Int64
from services.aggregator.aggregation import Measure, measure


def measured(federation: Federation, coefficients: Coefficients) -> list[Measured]:
    """What every client finds of the coefficients on its held-out examples."""
    return [Measured(*party.calibrator.measure(coefficients)) for party in federation.parties]


def tested(federation: Federation, scores: Float32, found: Sequence[Measured]) -> dict[str, Any]:
    """Accuracy and macro-F1 of scores of the test set, both also with the label prior of `found` subtracted, and replaced by the
    shares that the labels have among the held-out examples."""
    prior, shares = bias(federation, found), label_shares(found)
    matched = counted(federation.truths, scores - prior + np.log(shares), scores.shape[1])
    return both_ways(federation.truths, scores, prior) | {
        "accuracy_prior_matched": matched.accuracy,
        "macro_f1_prior_matched": matched.macro_f1,
    }


def both_ways(truths: Int64, scores: Float32, prior: Float32) -> dict[str, Any]:
    """Accuracy and macro-F1 of scores (n, C), both also with a label prior (C,) subtracted."""
    plain, adjusted = (counted(truths, part, scores.shape[1]) for part in (scores, scores - prior))
    return {
        "accuracy": plain.accuracy,
        "macro_f1": plain.macro_f1,
        "accuracy_without_prior": adjusted.accuracy,
        "macro_f1_without_prior": adjusted.macro_f1,
    }


def counted(truths: Int64, scores: Float32, labels: int) -> Measure:
    """Accuracy and macro-F1 of the most probable labels."""
    return measure(confusion(truths.tolist(), list(scores), labels))


def label_shares(found: Sequence[Measured]) -> Float32:
    """Share of each label among all held-out examples, (C,), each counted once more than it is there."""
    counts = np.sum([one.confusion.sum(axis=1) for one in found], axis=0) + 1
    return np.asarray(counts / counts.sum(), dtype=np.float32)


def bias(federation: Federation, found: Sequence[Measured]) -> Float32:
    """The aggregator's estimate of the label prior under these coefficients, (C,)."""
    bodies = [
        federation.wire.update(None, one, int(one.confusion.sum()), 0) for one in found if one.label_probabilities is not None
    ]
    evaluation = federation.wire.evaluation(Policy(label_bias=True), bodies).evaluation
    assert evaluation is not None, "some client holds examples out"
    assert evaluation.label_bias is not None
    return np.array(evaluation.label_bias, dtype=np.float32)
