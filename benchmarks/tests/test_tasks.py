"""Several tasks on one text: each way answers the same, and the shared one runs the text once."""

from __future__ import annotations

import pytest

from benchmarks.tasks.__main__ import ALONE, BATCHED, SHARED, markdown, measure
from testing.random_models import build, forward_sizes


def test_every_way_is_measured_with_the_same_answers_and_the_shared_one_runs_fewer_tokens() -> None:
    lm = build()
    with forward_sizes(lm) as sizes:
        rows = measure(lm, [3], [1])
    assert [(row["tasks"], row["way"]) for row in rows] == [(3, way) for way in (ALONE, BATCHED, SHARED)]
    assert all(row["cpu_ms"] > 0 and row["wall_ms"] > 0 for row in rows)
    assert all(row["largest_difference"] < 1e-4 for row in rows)
    warm, first, second, third, *batched, shared = sizes
    assert warm == shared < 0.6 * sum(batched)
    assert sum(batched) <= first + second + third


def test_the_table_compares_the_cpu_time_with_one_request_for_each_task() -> None:
    row = {"tasks": 8, "turns": 3, "wall_ms": 500.0, "largest_difference": 2e-7}
    rows = [row | {"way": SHARED, "cpu_ms": 100.0}, row | {"way": ALONE, "cpu_ms": 750.0}]
    lines = markdown({"rows": rows}).splitlines()
    assert lines[2] == f"| 8 | {SHARED} | 3 | 100 | 500 | 12.5 | 7.5 | 2e-07 |"
    assert lines[3] == f"| 8 | {ALONE} | 3 | 750 | 500 | 93.8 | 1.0 | 2e-07 |"


@pytest.mark.parametrize("count", [1, 5])
def test_a_number_of_tasks_is_measured_by_itself(count: int) -> None:
    assert {row["tasks"] for row in measure(build(), [count], [2])} == {count}
