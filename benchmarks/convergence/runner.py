"""One cell run from the first version to the last, with what every version does on the test set. Prints nothing, writes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.convergence.settings import Cell, Plan
from benchmarks.federated.aggregation import Measured
from benchmarks.federated.evaluation import measured, tested
from benchmarks.federated.federation import Federation
from ifed.tensors.values import Coefficients

Told = Callable[[str], None]


def run(federation: Federation, cell: Cell, plan: Plan, told: Told) -> dict[str, Any]:
    """All rounds of a cell.

    Returns:
        JSON-ready: the setting, and a row for each evaluated version with accuracy and macro-F1 on the test set, both also with the
        label prior subtracted, the loss of the rounds before it, and one client's bytes so far.
    """
    policy, every = cell.policy_for(plan), cell.rounds_between(plan)
    algorithm = cell.maker(federation, policy, plan.seed)
    current = federation.first(cell.groups or federation.lm.hidden_size, cell.context_weight)
    nothing = Measured(np.zeros((len(federation.source.labels),) * 2, dtype=np.int64), None)
    began, losses = time.monotonic(), []
    up, down = federation.context_bytes
    found = measured(federation, current)
    rows = [_row(federation, current, found) | {"round": 0, "loss": None, "bytes_up": up, "bytes_down": down}]
    for index in range(policy.rounds):
        given = found if index % every == 0 else [nothing] * len(federation.parties)
        step = algorithm.round(index, current, given)
        current, up, down = step.coefficients, up + step.bytes_up, down + step.bytes_down
        losses.append(step.loss)
        if (index + 1) % every == 0:
            found = measured(federation, current)
            loss = float(np.mean(losses[-every:]))
            rows.append(_row(federation, current, found) | {"round": index + 1, "loss": loss, "bytes_up": up, "bytes_down": down})
            told(f"{cell.name}: round {index + 1} of {policy.rounds}, loss {loss:.3f}, accuracy {rows[-1]['accuracy']:.1%}")
    return {
        "cell": cell.name,
        "axis": cell.axis,
        "title": cell.title,
        "groups": current.groups,
        "layers": len(federation.layers),
        "policy": policy.model_dump(mode="json", exclude_defaults=True),
        "seconds": time.monotonic() - began,
        "rows": rows,
    }


def _row(federation: Federation, coefficients: Coefficients, found: Sequence[Measured]) -> dict[str, Any]:
    return tested(federation, federation.test_scores(coefficients), found)
