"""Figures, and what a cell ran on, in the words of a table. Measures nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.paper.summary import NONE, Spread


def ran_on(machine: Mapping[str, Any]) -> str:
    """What a cell ran on."""
    cpu = f"{machine['cpu']}{' with AMX' if machine['amx'] else ''}, {machine['cores']} cores"
    threads = f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"
    return f"{cpu}, {threads}, on {machine['device']} in {machine['dtype']}, torch {machine['torch']}"


def percent(found: Spread | None) -> str:
    """Shares as percent: `percent(Spread(0.86, 0.008, 3)) == "86.0 ± 0.8"`."""
    if found is None:
        return NONE
    deviation = "" if found.deviation is None else f" ± {100 * found.deviation:.1f}"
    return f"{100 * found.mean:.1f}{deviation}"


def one_decimal(found: Spread | None) -> str:
    """The mean alone."""
    return NONE if found is None else f"{found.mean:.1f}"


def whole(ratio: float | None) -> str:
    """Times or bytes: `whole(1132.4) == "1,132"`."""
    return NONE if ratio is None else f"{ratio:,.0f}"


def number(value: float | str | None) -> str:
    """A figure that someone else reports."""
    return NONE if value is None else value if isinstance(value, str) else f"{value:,}"
