"""The goals and medians of the aggregator's benchmark, on made-up figures."""

from __future__ import annotations

import pytest

from benchmarks.aggregator.report import Goal, Result, goals, medians


def figures(system: str, clients: int, rate: float, **more: object) -> Result:
    return Result(system, "18x2x640", clients, 1.0, rate, **more)  # type: ignore[arg-type]


def test_goals_that_were_not_measured_are_neither_met_nor_missed() -> None:
    assert [(goal.measured, goal.met) for goal in goals([figures("flower", 20, 2.0)], [])] == [(None, None)] * 3


@pytest.mark.parametrize(("rate", "p99", "peak", "met"), [(10.0, 49.0, 599.0, True), (9.9, 50.0, 600.0, False)])
def test_flower_is_compared_at_its_largest_number_of_clients(rate: float, p99: float, peak: float, met: bool) -> None:
    ours = [figures("ifed", 10, 900.0), figures("ifed", 20, rate), figures("ifed", 10_000, 1.0, peak_megabytes=peak)]
    flower = [figures("flower", 10, 1.0), figures("flower", 20, 2.0)]
    results = goals(ours + flower, [{"p99_ms": 1.0}, {"p99_ms": p99}, {"p99_ms": 900.0}])
    assert [goal.met for goal in results] == [met] * 3
    assert results[0] == Goal("5 times Flower's contributions/s", f"{rate / 2:.1f} times at 20", met)


def test_the_median_of_each_field_is_taken_separately() -> None:
    runs = [
        figures("ifed", 10, rate, peak_megabytes=peak, round_seconds=(rate,)) for rate, peak in ((1.0, 9.0), (2.0, 7.0), (6.0, 8.0))
    ]
    middle = medians(runs)
    assert (middle.contributions_per_second, middle.peak_megabytes, middle.update_p99_ms, middle.runs) == (2.0, 8.0, None, 3)
    assert list(middle.round_seconds) == [2.0]
