"""What a benchmark found: its medians, its table, and whether each goal is met. Measures nothing."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from benchmarks.tables import grid

HEADINGS = (
    "system", "payload", "clients", "rounds/s", "contributions/s", "context p50/p99 ms", "update p50/p99 ms", "peak MB", "database MB", "CPU ms each"
)  # fmt: skip


@dataclass(frozen=True)
class Figures:
    """One run, or the medians of several. What a system does not tell is None."""

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
    """`percentile([1, 2, 3], 50) == 2`."""
    return float(np.percentile(seconds, percent))


def medians(runs: Sequence[Figures]) -> Figures:
    """The median of every figure over runs of one kind."""
    first = runs[0]
    same = {"system", "payload", "clients", "runs", "round_seconds"}
    middle = {
        field.name: None if getattr(first, field.name) is None else statistics.median(getattr(run, field.name) for run in runs)
        for field in fields(Figures)
        if field.name not in same
    }
    rounds = [statistics.median(took) for took in zip(*(run.round_seconds for run in runs), strict=True)]
    return Figures(first.system, first.payload, first.clients, **middle, round_seconds=rounds, runs=len(runs))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Goal:
    """What was to be reached, and what was; nothing where it was not measured."""

    goal: str
    measured: str | None = None
    met: bool | None = None


def goals(found: Sequence[Figures], steady: Sequence[Mapping[str, float]]) -> list[Goal]:
    """The goals of this benchmark. Flower is held against ours at the largest count it got through."""
    faster, waits, memory = (
        "5 times Flower's contributions/s",
        "p99 of an update under 50 ms at 100/s",
        "10,000 clients under 600 MB",
    )
    made = [Goal(faster), Goal(waits), Goal(memory)]
    flower = max((one for one in found if one.system == "flower"), key=lambda one: one.clients, default=None)
    ours = {(one.payload, one.clients): one for one in found if one.system == "ifed"}
    if flower is not None and (same := ours.get((flower.payload, flower.clients))) is not None:
        ratio = same.contributions_per_second / flower.contributions_per_second
        made[0] = Goal(faster, f"{ratio:.1f} times at {flower.clients}", ratio >= 5)
    if steady:
        p99 = statistics.median(one["p99_ms"] for one in steady)
        made[1] = Goal(waits, f"{p99:.1f} ms", p99 < 50)
    peaks = [one.peak_megabytes for (_, clients), one in ours.items() if clients == 10_000 and one.peak_megabytes is not None]
    if peaks:
        made[2] = Goal(memory, f"{max(peaks):.0f} MB", max(peaks) < 600)
    return made


def table(found: Sequence[Figures]) -> str:
    """Markdown."""
    return grid(HEADINGS, map(_row, found), HEADINGS[:2])


def _row(one: Figures) -> tuple[str, ...]:
    return (
        one.system,
        one.payload,
        f"{one.clients:,}",
        f"{one.rounds_per_second:.3g}",
        f"{one.contributions_per_second:.3g}",
        _pair(one.context_p50_ms, one.context_p99_ms),
        _pair(one.update_p50_ms, one.update_p99_ms),
        _number(one.peak_megabytes),
        _number(one.database_megabytes),
        "" if one.cpu_ms_per_contribution is None else f"{one.cpu_ms_per_contribution:.1f}",
    )


def _pair(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.1f} / {high:.1f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"
