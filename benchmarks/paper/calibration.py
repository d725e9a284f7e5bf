"""The rounds of a task from the first version to the last, each version evaluated on the test texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.federated.aggregation import HeldOutResult
from benchmarks.federated.algorithms import PolicyAlgorithm
from benchmarks.federated.clock import now
from benchmarks.federated.evaluation import estimate_prior, evaluate_scores, measure_held_out
from benchmarks.federated.federation import Federation
from benchmarks.paper.methods import Plan, Setting
from benchmarks.paper.texts import BySet, EvaluationTexts, with_first_texts
from ifed.tensors.values import Coefficients

Progress = Callable[[str], None]


def run_calibration(
    federation: Federation, texts: EvaluationTexts, setting: Setting, plan: Plan, seed: int, progress: Progress, *, local: bool
) -> dict[str, Any]:
    """Run all rounds of a setting.

    Args:
        texts: the test set of the federation.
        local: evaluate also each client's own coefficients, on the first few texts of the test set.

    Returns:
        JSON-ready: a row for every version with the accuracy and macro-F1 on texts A of the reading that the task serves (the label prior
        matched where the policy says so), the accuracy in both readings, and one client's seconds and bytes of the round before it; and
        the figures of the last version on each set of texts.
    """
    policy = setting.policy_for(plan)
    algorithm = PolicyAlgorithm(federation, policy, seed)
    current = federation.initial_coefficients(setting.groups, policy.initial_context_weight)
    held_out, seconds = _measure_held_out(federation, current)
    served = "matched" if policy.label_bias else "plain"
    readings = _readings(federation, texts, current, held_out)
    rows = [with_first_texts(readings, served) | {"round": 0, "seconds": 0.0, "body_up": 0, "body_down": 0}]
    for index in range(policy.rounds):
        result = algorithm.round(index, current, held_out)
        spent, current = result.seconds + seconds, result.coefficients
        held_out, seconds = _measure_held_out(federation, current)
        readings = _readings(federation, texts, current, held_out)
        row = with_first_texts(readings, served) | {"round": index + 1, "loss": result.loss, "seconds": spent}
        row |= {"body_up": result.bytes_up, "body_down": result.bytes_down}
        if local:
            row |= {"local": _subset_accuracy(federation, result.local), "global": _subset_accuracy(federation, [current])}
        rows.append(row)
        accuracy = f"accuracy {row['accuracy']:.1%}"
        progress(f"round {index + 1} of {policy.rounds}, loss {result.loss:.3f}, {accuracy}, {spent:.1f} s a client")
    readings["served"] = readings[served]
    return {"groups": current.groups, "layers": len(federation.layers), "rows": rows, "readings": readings}


def _measure_held_out(federation: Federation, coefficients: Coefficients) -> tuple[list[HeldOutResult], float]:
    """Return the clients' results on their held-out texts, and what they cost a client in seconds, mean over the clients."""
    began = now(federation.lm)
    held_out = measure_held_out(federation, coefficients)
    return held_out, (now(federation.lm) - began) / len(federation.clients)


def _readings(
    federation: Federation, texts: EvaluationTexts, coefficients: Coefficients, held_out: Sequence[HeldOutResult]
) -> dict[str, BySet]:
    scores = federation.test_scores(coefficients)
    return texts.readings(federation.truths, scores, *estimate_prior(federation, held_out))


def _subset_accuracy(federation: Federation, versions: Sequence[Coefficients]) -> float:
    """Return the mean accuracy of versions on the first few texts of the test set, with the label prior kept."""
    labels = len(federation.dataset.labels)
    scores = [federation.subset_scores(version) for version in versions]
    return float(np.mean([evaluate_scores(federation.truths[: len(part)], part, labels).accuracy for part in scores]))
