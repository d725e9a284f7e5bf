"""The results of a run: medians, the table, and the goals."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from benchmarks.tables import markdown_table

HEADINGS = (
    *("system", "payload", "clients", "rounds/s", "contributions/s", "context p50/p99 ms", "update p50/p99 ms"),
    *("peak MB", "database MB", "CPU ms each"),
)


@dataclass(frozen=True)
class Result:
    """One run, or the medians of several; None where a system does not measure a value."""

    system: str
    payload: str
    clients: int
    rounds_per_second: float
    contributions_per_second: float
    context_p50_ms: float | None = None
    context_p99_ms: float | None = None
    update_p50_ms: float | None = None
    update_p99_ms: float | None = None
    peak_megabytes: float | None = None
    database_megabytes: float | None = None
    cpu_ms_per_contribution: float | None = None
    round_seconds: Sequence[float] = ()
    runs: int = 1


def percentile(seconds: Sequence[float], percent: float) -> float:
    """Return a percentile: `percentile([1, 2, 3], 50) == 2`."""
    return float(np.percentile(seconds, percent))


def medians(runs: Sequence[Result]) -> Result:
    """Return the median of every field over runs of one kind."""
    first = runs[0]
    not_averaged = {"system", "payload", "clients", "runs", "round_seconds"}
    middle = {
        field.name: None if getattr(first, field.name) is None else statistics.median(getattr(run, field.name) for run in runs)
        for field in fields(Result)
        if field.name not in not_averaged
    }
    rounds = [statistics.median(seconds) for seconds in zip(*(run.round_seconds for run in runs), strict=True)]
    return Result(first.system, first.payload, first.clients, **middle, round_seconds=rounds, runs=len(runs))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Goal:
    """A goal with its result; both None where it was not measured."""

    goal: str
    measured: str | None = None
    met: bool | None = None


def goals(results: Sequence[Result], paced: Sequence[Mapping[str, float]]) -> list[Goal]:
    """Return the goals of this benchmark; Flower is compared at the largest number of clients that it completed."""
    throughput, latency, memory = (
        "5 times Flower's contributions/s",
        "p99 of an update under 50 ms at 100/s",
        "10,000 clients under 600 MB",
    )
    results_by_goal = [Goal(throughput), Goal(latency), Goal(memory)]
    flower = max((result for result in results if result.system == "flower"), key=lambda result: result.clients, default=None)
    ours = {(result.payload, result.clients): result for result in results if result.system == "ifed"}
    if flower is not None and (counterpart := ours.get((flower.payload, flower.clients))) is not None:
        ratio = counterpart.contributions_per_second / flower.contributions_per_second
        results_by_goal[0] = Goal(throughput, f"{ratio:.1f} times at {flower.clients}", ratio >= 5)
    if paced:
        p99 = statistics.median(run["p99_ms"] for run in paced)
        results_by_goal[1] = Goal(latency, f"{p99:.1f} ms", p99 < 50)
    peaks = [
        result.peak_megabytes for (_, clients), result in ours.items() if clients == 10_000 and result.peak_megabytes is not None
    ]
    if peaks:
        results_by_goal[2] = Goal(memory, f"{max(peaks):.0f} MB", max(peaks) < 600)
    return results_by_goal


def markdown(results: Mapping[str, Any]) -> str:
    """Return the goals, the table of all runs, and the latency at a steady rate."""
    goal_rows = [
        (goal["goal"], "–" if goal["met"] is None else goal["measured"], {True: "yes", False: "no", None: "–"}[goal["met"]])
        for goal in results["goals"]
    ]
    parts = [
        markdown_table(("goal", "measured", "met"), goal_rows, ("goal", "met")),
        table([Result(**run) for run in results["runs"]]),
    ]
    parts += [
        f"Updates sent at {run['per_second']:.0f} a second: p50 {run['p50_ms']:.1f} ms, p99 {run['p99_ms']:.1f} ms."
        for run in results["paced"]
    ]
    return "\n\n".join(parts)


def table(results: Sequence[Result]) -> str:
    """Return the table of these runs in Markdown."""
    return markdown_table(HEADINGS, map(_row, results), HEADINGS[:2])


def _row(result: Result) -> tuple[str, ...]:
    return (
        result.system,
        result.payload,
        f"{result.clients:,}",
        f"{result.rounds_per_second:.3g}",
        f"{result.contributions_per_second:.3g}",
        _pair(result.context_p50_ms, result.context_p99_ms),
        _pair(result.update_p50_ms, result.update_p99_ms),
        _number(result.peak_megabytes),
        _number(result.database_megabytes),
        "" if result.cpu_ms_per_contribution is None else f"{result.cpu_ms_per_contribution:.1f}",
    )


def _pair(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.1f} / {high:.1f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"
