"""Which of the waiting texts share the next forward pass: pure arithmetic on their sizes. Knows no requests and no model."""

from __future__ import annotations

import math
from collections.abc import Sequence


def share(waiting: int, *, idle: int, lanes: int, budget: int, short: int) -> int:
    """Tokens that a lane takes of those that wait: a part for each idle lane; where all others are busy, for each lane, or a short pass.

    Args:
        waiting: tokens.
        idle: lanes that do nothing, this one not counted.
        lanes: all of them.
        budget: the most.
        short: tokens up to which a pass costs little more than for one text, so that a lane leaves none of them to others that are busy.
    """
    part = math.ceil(waiting / (1 + idle)) if idle else max(short, math.ceil(waiting / lanes))
    return min(budget, part)


def choose(sizes: Sequence[int], budget: int, *, padded: bool) -> list[int]:
    """Indices of the texts to run together, the first among them always.

    Texts laid end to end cost the sum of their sizes, so they are taken in turn while they fit. Where they are padded, each costs the
    longest one's size, so after the first come those nearest to it in length.

    Args:
        sizes: tokens of each waiting text, in the order in which they are entitled to be next.
        budget: tokens of one forward pass, padding included; a first text that is longer runs alone.
    """
    if not sizes:
        return []
    chosen, longest, total = [0], sizes[0], sizes[0]
    others = range(1, len(sizes))
    for index in sorted(others, key=lambda index: abs(sizes[index] - sizes[0])) if padded else others:
        grown = max(longest, sizes[index]) * (len(chosen) + 1) if padded else total + sizes[index]
        if grown <= budget:
            chosen.append(index)
            longest, total = max(longest, sizes[index]), total + sizes[index]
    return sorted(chosen)
