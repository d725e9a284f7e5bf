"""Run one setting from the first version to the last, each version evaluated on the test set."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.convergence.settings import Plan, Setting
from benchmarks.federated.aggregation import HeldOutResult
from benchmarks.federated.evaluation import evaluate, measure_held_out
from benchmarks.federated.federation import Federation
from ifed.tensors.values import Coefficients

Progress = Callable[[str], None]


def run_setting(federation: Federation, setting: Setting, plan: Plan, progress: Progress) -> dict[str, Any]:
    """Run all rounds of a setting.

    Returns:
        JSON-ready: the setting, and a row for each evaluated version with accuracy and macro-F1 on the test set in three readings of the
        label prior, the loss of the rounds before it, and one client's bytes so far.
    """
    policy, every = setting.policy_for(plan), setting.rounds_between_evaluations(plan)
    algorithm = setting.make_algorithm(federation, policy, plan.seed)
    current = federation.initial_coefficients(setting.groups or federation.lm.hidden_size, setting.context_weight)
    empty = HeldOutResult(np.zeros((len(federation.dataset.labels),) * 2, dtype=np.int64), None)
    began, losses = time.monotonic(), []
    up: float
    down: float
    up, down = federation.context_bytes
    held_out = measure_held_out(federation, current)
    rows = [_evaluate(federation, current, held_out) | {"round": 0, "loss": None, "bytes_up": up, "bytes_down": down}]
    for index in range(policy.rounds):
        measured = held_out if index % every == 0 else [empty] * len(federation.clients)
        result = algorithm.round(index, current, measured)
        current, up, down = result.coefficients, up + result.bytes_up, down + result.bytes_down
        losses.append(result.loss)
        if (index + 1) % every == 0:
            held_out = measure_held_out(federation, current)
            loss = float(np.mean(losses[-every:]))
            row = _evaluate(federation, current, held_out)
            rows.append(row | {"round": index + 1, "loss": loss, "bytes_up": up, "bytes_down": down})
            progress(f"{setting.name}: round {index + 1} of {policy.rounds}, loss {loss:.3f}, accuracy {row['accuracy']:.1%}")
    return {
        "cell": setting.name,
        "axis": setting.axis,
        "title": setting.title,
        "groups": current.groups,
        "layers": len(federation.layers),
        "policy": policy.model_dump(mode="json", exclude_defaults=True),
        "seconds": time.monotonic() - began,
        "rows": rows,
    }


def _evaluate(federation: Federation, coefficients: Coefficients, held_out: Sequence[HeldOutResult]) -> dict[str, Any]:
    return evaluate(federation, federation.test_scores(coefficients), held_out)
