"""What a benchmark found, its medians and its table. Measures nothing."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

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


def table(found: Sequence[Figures]) -> str:
    """Markdown."""
    rows = [HEADINGS, tuple("---" for _ in HEADINGS), *(_row(one) for one in found)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


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
