"""Seconds of a piece of work, several times over. Knows no model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def median_seconds(works: Mapping[str, Callable[[], object]], *, repetitions: int) -> dict[str, float]:
    """The median of each work's runs; all take turns, so that a neighbour's load falls on all of them.

    Of each turn's two runs the second counts: the first finds the caches as the work before left them.
    """
    found = [{name: _second(work) for name, work in works.items()} for _ in range(repetitions)]
    return {name: statistics.median(one[name] for one in found) for name in works}


def overhead(changed: Callable[[], object], plain: Callable[[], object], *, pairs: int) -> tuple[float, float, float]:
    """How much longer `changed` takes than `plain`, as a share: lower quartile, median and upper quartile over alternating pairs.

    Each pair runs both right after one another, the order changing from pair to pair, so that a neighbour's load falls on both.
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


def _second(work: Callable[[], object]) -> float:
    work()
    return _seconds(work)


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
