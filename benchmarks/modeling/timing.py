"""Timing of callables that alternate, so that other load on the machine falls on all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def median_seconds(works: Mapping[str, Callable[[], object]], *, repetitions: int) -> dict[str, float]:
    """Return the median seconds of each callable; all run in turn.

    Of each turn's two calls the second counts, since the first finds the caches as the callable before left them.
    """
    turns = [{name: _second_call(work) for name, work in works.items()} for _ in range(repetitions)]
    return {name: statistics.median(turn[name] for turn in turns) for name in works}


def overhead(changed: Callable[[], object], plain: Callable[[], object], *, pairs: int) -> tuple[float, float, float]:
    """Return how much longer `changed` takes than `plain`, as a share: lower quartile, median and upper quartile over pairs.

    Each pair calls both right after one another, and their order changes from pair to pair.
    """
    changed(), plain()
    shares = []
    for pair in range(pairs):
        if pair % 2:
            after, before = _seconds(changed), _seconds(plain)
        else:
            before, after = _seconds(plain), _seconds(changed)
        shares.append(after / before - 1)
    low, middle, high = statistics.quantiles(shares, n=4)
    return low, middle, high


def _second_call(work: Callable[[], object]) -> float:
    work()
    return _seconds(work)


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
