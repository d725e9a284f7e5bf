"""The goals of the serving benchmark on made-up figures, where each can be met and missed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.serving import __main__ as command
from benchmarks.serving.measurements import Row, half_load_turn, over_turns
from benchmarks.serving.report import cpu_ratio, goals, rate_ratio, table

HALF = {"p99_over_single": 4.9}
NAMES = (
    "one task",
    "64 tasks",
    "1000 tasks",
    "one task, by turns",
    "64 tasks, by turns",
    "base model, by turns",
    "few-shot, 12",
    "few-shot, 12, nothing kept",
    "plain, one after the other",
    "plain, in threads",
)


def row(name: str, *rates: float, callers: int = 32) -> Row:
    return Row(name, callers, list(rates), [0.01, 0.02, 0.03], [1.0] * len(rates), [0.005] * len(rates), 300_000_000)


def rows(**rates: float) -> list[Row]:
    """Return rows that just meet all goals, with `rates` in place of some, and rows at one caller that must not count."""
    met = dict(zip(NAMES, (80.0, 1.0, 1.0, 80.0, 76.0, 82.4, 10.0, 10.0, 10.0, 10.0), strict=True))
    chosen = {name: rates.get(name.replace(",", "").replace(" ", "_"), rate) for name, rate in met.items()}
    return [row(name, 1.0, callers=1) for name in NAMES] + [row(name, rate) for name, rate in chosen.items()]


def test_every_goal_can_be_met() -> None:
    assert [goal["met"] for goal in goals(rows(), HALF)] == [True] * 7
    assert [goal["measured"] for goal in goals(rows(), HALF)] == ["8.0", "8.0", "-5.0 %", "-2.9 %", "8.0", "8.0", "4.9"]


@pytest.mark.parametrize(
    ("place", "slower"),
    [
        (0, {"plain_one_after_the_other": 10.1}),
        (1, {"plain_in_threads": 10.1}),
        (2, {"64_tasks_by_turns": 75.9}),
        (3, {"base_model_by_turns": 82.6}),
        (4, {"few-shot_12": 10.1}),
        (5, {"few-shot_12_nothing_kept": 10.1}),
    ],
)
def test_each_goal_can_be_missed_by_itself(place: int, slower: dict[str, float]) -> None:
    assert [goal["met"] for goal in goals(rows(**slower), HALF)] == [at != place for at in range(7)]


def test_a_turn_at_half_load_is_compared_with_its_own_single_request_time() -> None:
    latencies = [0.02] * 95 + [0.04] * 4 + [0.06]
    turns = [
        half_load_turn(
            row("full", rate),
            Row("alone", 1, latencies=[0.01 * slow] * 3),
            Row("half", 0, latencies=[latency * slow for latency in latencies]),
        )
        for rate, slow in ((80.0, 1), (40.0, 2), (20.0, 4))
    ]
    assert [turn["p99_over_single"] for turn in turns] == pytest.approx([6.0] * 3)
    summary = over_turns(turns)
    assert (summary["requests_per_second"], summary["single_request_ms_lowest"], summary["p50_ms_highest"]) == (20.0, 10.0, 80.0)


def test_a_slow_tail_at_half_load_misses_its_goal() -> None:
    assert [goal["met"] for goal in goals(rows(), HALF | {"p99_over_single": 5.0})] == [True] * 6 + [False]


def test_rows_measured_in_turns_are_compared_turn_by_turn() -> None:
    busy_in_the_second = row("one task", 100.0, 10.0, 100.0), row("base model", 110.0, 11.0, 100.0)
    assert rate_ratio(*busy_in_the_second) == pytest.approx(100 / 110)
    assert rate_ratio(row("one task", 90.0, 100.0, 80.0), row("plain", 9.0)) == pytest.approx(10.0)


def test_the_cpu_time_of_a_request_is_compared_as_well() -> None:
    measured = rows()
    for measurement in measured:
        if measurement.name == "plain, one after the other":
            measurement.cpu = [0.035]
    by_cpu = [goal["by_cpu_time"] for goal in goals(measured, HALF)]
    assert by_cpu == [7.0, 1.0, 1.0, 1.0, 1.0, 1.0, None]
    busy_in_the_second = row("one task", 1.0, 1.0, 1.0), row("base model", 1.0, 1.0, 1.0)
    busy_in_the_second[0].cpu, busy_in_the_second[1].cpu = [2.0, 20.0, 2.0], [1.0, 10.0, 2.0]
    assert cpu_ratio(*busy_in_the_second) == pytest.approx(0.5)


def test_the_table_has_a_line_for_each_row() -> None:
    lines = table([row.json() for row in rows()]).splitlines()
    assert len(lines) == 2 + 2 * len(NAMES)
    assert lines[-1] == "| plain, in threads | 32 | 10.0 | 20 | 30 | 30 | 5.0 | 1.00 | 300 |"


def test_callers_without_those_of_the_goals_are_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["serving", "--texts", str(tmp_path), "--demonstrations", str(tmp_path), "--callers", "1", "8"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit):
        command.main()
    assert "--callers must include [32]" in capsys.readouterr().err
