"""The table and the goals of the serving benchmark."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.serving.measurements import BY_TURNS, GOAL_CALLERS, Row
from benchmarks.tables import markdown_table

HEADINGS = ("answered by", "callers", "requests/s", "p50 ms", "p95 ms", "p99 ms", "CPU ms a request", "cores", "memory MB")


def markdown(results: Mapping[str, Any]) -> str:
    """Return the goals, the table of rows, and the latency at half load."""
    half = results["half_load"]
    half_load = (
        f"Half load, {half['requests_per_second']:.1f} requests a second at random: p50 {half['p50_ms']:.0f} ms, "
        f"p95 {half['p95_ms']:.0f} ms, p99 {half['p99_ms']:.0f} ms; one caller alone {half['single_request_ms']:.0f} ms; medians of turns."
    )
    return "\n\n".join([_goal_table(results["goals"]), table(results["rows"]), half_load])


def _goal_table(goals: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for goal in goals:
        by_cpu = goal.get("by_cpu_time")
        rows.append([goal["goal"], goal["measured"], "–" if by_cpu is None else f"{by_cpu:.2f}", "yes" if goal["met"] else "no"])
    headings = [f"goal, at {GOAL_CALLERS} callers", "measured", "by CPU time", "met"]
    return markdown_table(headings, rows, [headings[0], "met"])


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table with a line for each way to answer and number of callers, from rows as `Row.json` returns them."""
    lines = []
    for row in rows:
        latencies = (f"{row[name]:.0f}" for name in ("p50_ms", "p95_ms", "p99_ms"))
        rate, cpu, cores = f"{row['requests_per_second']:.1f}", f"{row['cpu_ms_per_request']:.1f}", f"{row['cores']:.2f}"
        lines.append([row["name"], row["callers"], rate, *latencies, cpu, cores, row["memory_mb"]])
    return markdown_table(HEADINGS, lines, HEADINGS[:1])


def goals(rows: Sequence[Row], half: dict[str, float]) -> list[dict[str, Any]]:
    """Return the goals at 32 callers, with what was measured."""
    at = {row.name: row for row in rows if row.callers == GOAL_CALLERS}
    ours = at["one task"]
    several = next(row for name, row in at.items() if name.endswith(f" tasks{BY_TURNS}"))
    few_shot, few_shot_uncached = (row for name, row in at.items() if name.startswith("few-shot"))
    plain, threads = at["plain, one after the other"], at["plain, in threads"]
    adapted, bare = at[f"one task{BY_TURNS}"], at[f"base model{BY_TURNS}"]
    mixed, injected = rate_ratio(several, adapted), rate_ratio(adapted, bare)
    over_single = half["p99_over_single"]
    return [
        _ratio_goal("8 times the plain endpoint's throughput", ours, plain),
        _ratio_goal("8 times the plain endpoint in threads", ours, threads),
        _goal(
            f"{several.name.removesuffix(BY_TURNS)} mixed within 5 % of one",
            mixed >= 0.95,
            f"{100 * (mixed - 1):+.1f} %",
            several,
            adapted,
        ),
        _goal("injection within 3 % of the base model", injected >= 0.97, f"{100 * (injected - 1):+.1f} %", adapted, bare),
        _ratio_goal("8 times few-shot prompting", ours, few_shot),
        _ratio_goal("the same, nothing kept", ours, few_shot_uncached),
        _goal("p99 at half load under 5 times the single-request time", over_single < 5, f"{over_single:.1f}"),
    ]


def rate_ratio(row: Row, other: Row) -> float:
    """Return how many times faster `row` is; where both were measured in turns, the median over the turns."""
    return _median_ratio(row.rates, other.rates)


def cpu_ratio(row: Row, other: Row) -> float:
    """Return how many times less CPU a request of `row` takes, likewise; other work on the machine disturbs it less."""
    return _median_ratio(other.cpu, row.cpu)


def _median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    if len(numerators) == len(denominators):
        return statistics.median(top / bottom for top, bottom in zip(numerators, denominators, strict=True))
    return statistics.median(numerators) / statistics.median(denominators)


def _ratio_goal(goal: str, row: Row, other: Row) -> dict[str, Any]:
    ratio = rate_ratio(row, other)
    return _goal(goal, ratio >= 8, f"{ratio:.1f}", row, other)


def _goal(goal: str, met: bool, measured: str, *rows: Row) -> dict[str, Any]:
    """Return a goal, with the ratio of CPU time beside that of throughput where two rows are compared."""
    return {"goal": goal, "met": met, "measured": measured, "by_cpu_time": round(cpu_ratio(*rows), 3) if rows else None}
