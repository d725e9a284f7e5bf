"""Accuracy on the common test set, with the label prior kept, flattened or matched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.federated.aggregation import HeldOutResult
from benchmarks.federated.federation import Federation
from ifed.messages.tasks import Policy
from ifed.modeling.scoring import confusion_counts
from ifed.tensors.label_prior import bias_of
from ifed.tensors.values import Coefficients, Float32, Int64
from services.aggregator.domain.evaluation import EvaluationResult, measure


def measure_held_out(federation: Federation, coefficients: Coefficients) -> list[HeldOutResult]:
    """Return every client's evaluation of the coefficients on its held-out examples."""
    measured = [client.calibrator.measure(coefficients) for client in federation.clients]
    return [HeldOutResult(result.confusion, result.label_probabilities) for result in measured]


def evaluate(federation: Federation, scores: Float32, held_out: Sequence[HeldOutResult]) -> dict[str, Any]:
    """Return accuracy and macro-F1 of test-set scores in three readings, with the label prior taken from the clients' results."""
    return evaluate_readings(federation.truths, scores, *estimate_prior(federation, held_out))


def estimate_prior(federation: Federation, held_out: Sequence[HeldOutResult]) -> tuple[Float32, Float32]:
    """Return the bias (C,) and the share (C,) of each label from the clients' held-out results."""
    shares = _label_shares(np.sum([result.confusion.sum(axis=1) for result in held_out], axis=0))
    return aggregate_bias(federation, held_out), shares


def evaluate_readings(truths: Int64, scores: Float32, bias: Float32, shares: Float32) -> dict[str, Any]:
    """Return accuracy and macro-F1 of scores (n, C) in three readings: as they are, with a flat label prior, and with a matched one.

    Args:
        bias: of each label, (C,), as the aggregator estimates it; subtracting it matches the prior to `shares`.
        shares: of each label among the held-out texts, (C,).
    """
    readings = {"": scores, "_without_prior": scores - bias - np.log(shares), "_prior_matched": scores - bias}
    results = {suffix: evaluate_scores(truths, values, scores.shape[1]) for suffix, values in readings.items()}
    return {f"accuracy{suffix}": result.accuracy for suffix, result in results.items()} | {
        f"macro_f1{suffix}": result.macro_f1 for suffix, result in results.items()
    }


def evaluate_scores(truths: Int64, scores: Float32, labels: int) -> EvaluationResult:
    """Return accuracy and macro-F1 of the most probable labels."""
    return measure(confusion_counts(truths.tolist(), list(scores), labels))


def estimate_bias(scores: Float32, truths: Int64) -> tuple[Float32, Float32]:
    """Return the bias (C,) and the label shares (C,) from the log-probabilities (n, C) of held-out texts, as a federation estimates them."""
    counts = np.bincount(truths, minlength=scores.shape[1])
    return np.array(bias_of(np.exp(scores).mean(axis=0), counts), dtype=np.float32), _label_shares(counts)


def aggregate_bias(federation: Federation, held_out: Sequence[HeldOutResult]) -> Float32:
    """Return the aggregator's estimate of each label's bias, (C,), from the clients' held-out results."""
    bodies = [
        federation.aggregator.update_body(None, result, int(result.confusion.sum()), 0)
        for result in held_out
        if result.label_probabilities is not None
    ]
    evaluation = federation.aggregator.aggregate_evaluations(Policy(label_bias=True), bodies).evaluation
    assert evaluation is not None, "no client holds out any examples"
    assert evaluation.label_bias is not None
    return np.array(evaluation.label_bias, dtype=np.float32)


def _label_shares(counts: Int64) -> Float32:
    """Return each label's share, (C,), with one added to each count."""
    return np.asarray((counts + 1) / (counts + 1).sum(), dtype=np.float32)
