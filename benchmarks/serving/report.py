"""The table and the goals of a serving benchmark. Measures nothing."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.serving.measurements import AT, BY_TURNS, Row
from benchmarks.tables import grid


def table(rows: Sequence[Row]) -> str:
    """Markdown, a line for each way to answer and number of callers."""
    lines = []
    for row in rows:
        said = row.json()
        told = (f"{said[name]:.0f}" for name in ("p50_ms", "p95_ms", "p99_ms"))
        rate, cpu, cores = f"{said['requests_per_second']:.1f}", f"{said['cpu_ms_per_request']:.1f}", f"{said['cores']:.2f}"
        lines.append([said["name"], said["callers"], rate, *told, cpu, cores, said["memory_mb"]])
    heads = ["answered by", "callers", "requests/s", "p50 ms", "p95 ms", "p99 ms", "CPU ms a request", "cores", "memory MB"]
    return grid(heads, lines, heads[:1])


def goals(rows: Sequence[Row], half: dict[str, float]) -> list[dict[str, Any]]:
    """What was to be reached, at 32 callers, and what was."""
    at = {row.name: row for row in rows if row.callers == AT}
    ours = at["one task"]
    some = next(row for name, row in at.items() if name.endswith(f" tasks{BY_TURNS}"))
    few_shot, forgetful = (one for name, one in at.items() if name.startswith("few-shot"))
    plain, threads = at["plain, one after the other"], at["plain, in threads"]
    one, bare = at[f"one task{BY_TURNS}"], at[f"bare model{BY_TURNS}"]
    mixed, injected = ratio(some, one), ratio(one, bare)
    times = half["p99_over_single"]
    return [
        _goal("8 times the plain endpoint's throughput", ratio(ours, plain) >= 8, f"{ratio(ours, plain):.1f}", ours, plain),
        _goal("8 times the plain endpoint in threads", ratio(ours, threads) >= 8, f"{ratio(ours, threads):.1f}", ours, threads),
        _goal(
            f"{some.name.removesuffix(BY_TURNS)} mixed within 5 % of one", mixed >= 0.95, f"{100 * (mixed - 1):+.1f} %", some, one
        ),
        _goal("injection within 3 % of the bare model", injected >= 0.97, f"{100 * (injected - 1):+.1f} %", one, bare),
        _goal("8 times few-shot prompting", ratio(ours, few_shot) >= 8, f"{ratio(ours, few_shot):.1f}", ours, few_shot),
        _goal("the same, nothing kept", ratio(ours, forgetful) >= 8, f"{ratio(ours, forgetful):.1f}", ours, forgetful),
        _goal("p99 at half load under 5 times the single-request time", times < 5, f"{times:.1f}"),
    ]


def ratio(one: Row, other: Row) -> float:
    """How much faster `one` was: where both took turns, the median over the turns, so that a busy moment falls on both sides."""
    return _over_turns(one.rates, other.rates)


def cpu_ratio(one: Row, other: Row) -> float:
    """How much less of the CPU a request took of `one`, likewise; a machine that does other things as well disturbs it less."""
    return _over_turns(other.cpu, one.cpu)


def _over_turns(mine: Sequence[float], theirs: Sequence[float]) -> float:
    if len(mine) == len(theirs):
        return statistics.median(one / other for one, other in zip(mine, theirs, strict=True))
    return statistics.median(mine) / statistics.median(theirs)


def _goal(goal: str, met: bool, measured: str, *rows: Row) -> dict[str, Any]:
    """With the ratio of the CPU time of a request beside that of the throughput, where two rows are compared."""
    return {"goal": goal, "met": met, "measured": measured, "by_cpu_time": round(cpu_ratio(*rows), 3) if rows else None}
