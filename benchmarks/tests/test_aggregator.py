"""What the benchmark of the aggregator makes of its figures."""

from __future__ import annotations

import pytest

from benchmarks.aggregator.report import Goal, Result, goals, medians


def figures(system: str, clients: int, rate: float, **more: object) -> Result:
    return Result(system, "18x2x640", clients, 1.0, rate, **more)  # type: ignore[arg-type]


def test_what_was_not_measured_meets_no_goal_and_misses_none() -> None:
    assert [(one.measured, one.met) for one in goals([figures("flower", 20, 2.0)], [])] == [(None, None)] * 3


@pytest.mark.parametrize(("rate", "p99", "peak", "met"), [(10.0, 49.0, 599.0, True), (9.9, 50.0, 600.0, False)])
def test_goals_are_held_against_flower_at_its_largest_count(rate: float, p99: float, peak: float, met: bool) -> None:
    ours = [figures("ifed", 10, 900.0), figures("ifed", 20, rate), figures("ifed", 10_000, 1.0, peak_megabytes=peak)]
    theirs = [figures("flower", 10, 1.0), figures("flower", 20, 2.0)]
    found = goals(ours + theirs, [{"p99_ms": 1.0}, {"p99_ms": p99}, {"p99_ms": 900.0}])
    assert [one.met for one in found] == [met] * 3
    assert found[0] == Goal("5 times Flower's contributions/s", f"{rate / 2:.1f} times at 20", met)


def test_a_median_is_taken_of_each_figure_by_itself() -> None:
    runs = [
        figures("ifed", 10, rate, peak_megabytes=peak, round_seconds=(rate,)) for rate, peak in ((1.0, 9.0), (2.0, 7.0), (6.0, 8.0))
    ]
    middle = medians(runs)
    assert (middle.contributions_per_second, middle.peak_megabytes, middle.update_p99_ms, middle.runs) == (2.0, 8.0, None, 3)
    assert list(middle.round_seconds) == [2.0]
