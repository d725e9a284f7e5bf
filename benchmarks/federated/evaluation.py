"""What a version of the coefficients does on the common test set, also by the label prior that the clients tell. Runs no rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.federated.aggregation import Measured
from benchmarks.federated.federation import Federation
from ifed.messages.tasks import Policy
from ifed.modeling.scoring import confusion_counts
from ifed.tensors.label_prior import bias_of
from ifed.tensors.values import Coefficients, Float32, Int64
from services.aggregator.domain.evaluation import EvaluationResult, measure


def measured(federation: Federation, coefficients: Coefficients) -> list[Measured]:
    """What every client finds of the coefficients on its held-out examples."""
    return [Measured(*party.calibrator.measure(coefficients)) for party in federation.parties]


def tested(federation: Federation, scores: Float32, found: Sequence[Measured]) -> dict[str, Any]:
    """Accuracy and macro-F1 of scores of the test set three ways, the label prior and its shares taken from `found`."""
    told = bias(federation, found)
    return three_ways(federation.truths, scores, told, label_shares(found))


def three_ways(truths: Int64, scores: Float32, told: Float32, shares: Float32) -> dict[str, Any]:
    """Accuracy and macro-F1 of scores (n, C): as they are, with the label prior flat, and with it matched to `shares`.

    Args:
        told: bias of each label, (C,), as the aggregator gives it; it matches the prior.
        shares: of each label among the texts it was taken from, (C,).
    """
    ways = {"": scores, "_without_prior": scores - told - np.log(shares), "_prior_matched": scores - told}
    found = {name: counted(truths, one, scores.shape[1]) for name, one in ways.items()}
    return {f"accuracy{name}": one.accuracy for name, one in found.items()} | {
        f"macro_f1{name}": one.macro_f1 for name, one in found.items()
    }


def bias_from(scores: Float32, truths: Int64) -> tuple[Float32, Float32]:
    """Bias (C,) and label shares (C,) from the log-probabilities (n, C) of held-out texts, as a federation would find them."""
    counts = np.bincount(truths, minlength=scores.shape[1])
    told = np.array(bias_of(np.exp(scores).mean(axis=0), counts), dtype=np.float32)
    return told, _shares(counts)


def counted(truths: Int64, scores: Float32, labels: int) -> EvaluationResult:
    """Accuracy and macro-F1 of the most probable labels."""
    return measure(confusion_counts(truths.tolist(), list(scores), labels))


def label_shares(found: Sequence[Measured]) -> Float32:
    """Share of each label among all held-out examples, (C,), each counted once more than it is there."""
    return _shares(np.sum([one.confusion.sum(axis=1) for one in found], axis=0))


def _shares(counts: Int64) -> Float32:
    return np.asarray((counts + 1) / (counts + 1).sum(), dtype=np.float32)


def bias(federation: Federation, found: Sequence[Measured]) -> Float32:
    """The aggregator's estimate of the label prior under these coefficients, (C,)."""
    bodies = [
        federation.wire.update(None, one, int(one.confusion.sum()), 0) for one in found if one.label_probabilities is not None
    ]
    evaluation = federation.wire.evaluation(Policy(label_bias=True), bodies).evaluation
    assert evaluation is not None, "some client holds examples out"
    assert evaluation.label_bias is not None
    return np.array(evaluation.label_bias, dtype=np.float32)
