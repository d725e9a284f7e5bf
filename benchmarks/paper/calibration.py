"""A task's rounds from the first version to the last, with what each does on the test set. Prints nothing, writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.federated.aggregation import Measured
from benchmarks.federated.algorithms import ByPolicy
from benchmarks.federated.clock import now
from benchmarks.federated.evaluation import counted, measured, tested
from benchmarks.federated.federation import Federation
from benchmarks.paper.methods import Plan, Setting
from ifed.messages.tasks import Policy
from ifed.tensors.values import Coefficients

Told = Callable[[str], None]


def calibrated(federation: Federation, setting: Setting, plan: Plan, seed: int, told: Told, *, local: bool) -> dict[str, Any]:
    """All rounds of a setting.

    Args:
        local: measure also what each client came to by itself, on the first few texts of the test set.

    Returns:
        JSON-ready: a row for every version with accuracy and macro-F1 as the task would be served, that is with the label prior
        subtracted where the policy says so, the accuracy both ways, and one client's seconds and bytes of the round before it.
    """
    policy = setting.policy_for(plan)
    algorithm = ByPolicy(federation, policy, seed)
    current = federation.first(setting.groups, policy.initial_context_weight)
    found, seconds = _measured(federation, current)
    rows = [_row(federation, policy, current, found) | {"round": 0, "seconds": 0.0, "body_up": 0, "body_down": 0}]
    for index in range(policy.rounds):
        step = algorithm.round(index, current, found)
        spent, current = step.seconds + seconds, step.coefficients
        found, seconds = _measured(federation, current)
        row = _row(federation, policy, current, found) | {"round": index + 1, "loss": step.loss, "seconds": spent}
        row |= {"body_up": step.bytes_up, "body_down": step.bytes_down}
        if local:
            row |= {"local": _alone(federation, step.local), "global": _alone(federation, [current])}
        rows.append(row)
        told(f"round {index + 1} of {policy.rounds}, loss {step.loss:.3f}, accuracy {row['accuracy']:.1%}, {spent:.1f} s a client")
    return {"groups": current.groups, "layers": len(federation.layers), "rows": rows}


def _measured(federation: Federation, coefficients: Coefficients) -> tuple[list[Measured], float]:
    """What the clients find of a version, and one client's seconds for it, mean over the clients."""
    began = now(federation.lm)
    found = measured(federation, coefficients)
    return found, (now(federation.lm) - began) / len(federation.parties)


def _row(federation: Federation, policy: Policy, coefficients: Coefficients, found: Sequence[Measured]) -> dict[str, Any]:
    return as_served(tested(federation, federation.test_scores(coefficients), found), prior=policy.label_bias)


def as_served(both: dict[str, Any], *, prior: bool) -> dict[str, Any]:
    """What was measured both ways, with `accuracy` and `macro_f1` those of a method that matches the label prior, or does not."""
    served = "_prior_matched" if prior else ""
    named = {"accuracy": both[f"accuracy{served}"], "macro_f1": both[f"macro_f1{served}"]}
    return named | {"accuracy_plain": both["accuracy"], "accuracy_prior_matched": both["accuracy_prior_matched"]}


def _alone(federation: Federation, versions: Sequence[Coefficients]) -> float:
    """Mean accuracy of versions on the first few texts of the test set, no prior subtracted."""
    labels = len(federation.source.labels)
    scores = [federation.few_scores(version) for version in versions]
    return float(np.mean([counted(federation.truths[: len(one)], one, labels).accuracy for one in scores]))
