"""Numbers and machines as the tables show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.paper.summary import MISSING, Spread


def machine_name(machine: Mapping[str, Any]) -> str:
    """Return the machine, device and number format of a cell in words."""
    cpu = f"{machine['cpu']}{' with AMX' if machine['amx'] else ''}, {machine['cores']} cores"
    threads = f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"
    return f"{cpu}, {threads}, on {machine['device']} in {machine['dtype']}, torch {machine['torch']}"


def percent(spread: Spread | None) -> str:
    """Return shares as percent: `percent(Spread(0.86, 0.008, 3)) == "86.0 ± 0.8"`."""
    if spread is None:
        return MISSING
    deviation = "" if spread.deviation is None else f" ± {100 * spread.deviation:.1f}"
    return f"{100 * spread.mean:.1f}{deviation}"


def one_decimal(spread: Spread | None) -> str:
    """Return the mean alone, with one decimal."""
    return MISSING if spread is None else f"{spread.mean:.1f}"


def integer(value: float | None) -> str:
    """Return a ratio or a number of bytes: `integer(1132.4) == "1,132"`."""
    return MISSING if value is None else f"{value:,.0f}"


def number(value: float | str | None) -> str:
    """Return a number as the paper prints it."""
    return MISSING if value is None else value if isinstance(value, str) else f"{value:,}"
