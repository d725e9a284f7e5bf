"""When a caller's patience ends, on the event loop's clock. Knows nothing else."""

from __future__ import annotations

import asyncio


def deadline_in(seconds: float | None) -> float | None:
    """The moment in so many seconds; None is never."""
    return None if seconds is None else asyncio.get_running_loop().time() + seconds


def sooner(one: float | None, other: float | None) -> float | None:
    """The earlier of two deadlines."""
    given = [deadline for deadline in (one, other) if deadline is not None]
    return min(given, default=None)
