"""The table, the machine and the goals of a serving benchmark. Measures nothing."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.serving.measuring import Row


def table(rows: Sequence[Row]) -> str:
    """Markdown, a line for each way to answer and number of callers."""
    lines = [
        "| answered by | callers | requests/s | p50 ms | p95 ms | p99 ms | CPU ms a request | cores | memory MB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        said = row.json()
        lines.append(
            f"| {said['name']} | {said['callers']} | {said['requests_per_second']:.1f} | {said['p50_ms']:.0f} | {said['p95_ms']:.0f} "
            f"| {said['p99_ms']:.0f} | {said['cpu_ms_per_request']:.1f} | {said['cores']:.2f} | {said['memory_mb']} |"
        )
    return "\n".join(lines)


def goals(rows: Sequence[Row], half: dict[str, float]) -> list[dict[str, Any]]:
    """What was to be reached, at 32 callers, and what was."""
    at = {row.name: row.rate for row in rows if row.callers == 32}
    ours, bare = at["one task"], at["bare model"]
    some = next(rate for name, rate in at.items() if name.endswith(" tasks"))
    few_shot = next(rate for name, rate in at.items() if name.startswith("few-shot"))
    plain, threads = at["plain, one after the other"], at["plain, in threads"]
    times = half["p99_ms"] / half["single_request_ms"]
    return [
        _goal("8 times the plain endpoint's throughput", ours / plain >= 8, f"{ours / plain:.1f}"),
        _goal("8 times the plain endpoint in threads", ours / threads >= 8, f"{ours / threads:.1f}"),
        _goal("mixed tasks within 5 % of one task", some / ours >= 0.95, f"{100 * (some / ours - 1):+.1f} %"),
        _goal("injection within 3 % of the bare model", ours / bare >= 0.97, f"{100 * (ours / bare - 1):+.1f} %"),
        _goal("8 times few-shot prompting", ours / few_shot >= 8, f"{ours / few_shot:.1f}"),
        _goal("p99 at half load under 5 times the single-request time", times < 5, f"{times:.1f}"),
    ]


def _goal(goal: str, met: bool, measured: str) -> dict[str, Any]:
    return {"goal": goal, "met": met, "measured": measured}


def machine() -> dict[str, Any]:
    """What it ran on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    load = psutil.getloadavg()[0]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "load_average_at_the_end": round(load, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
