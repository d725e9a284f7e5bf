"""A simulated queue before lanes that share by the service's own rule, for passes of a given length. Measures nothing."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from services.inference.engine import choose_batch, token_share


@dataclass(frozen=True, slots=True)
class Cost:
    """Milliseconds of a pass: `fixed` and so much `a_token`."""

    fixed: float
    a_token: float

    def of(self, tokens: int) -> float:
        return self.fixed + self.a_token * tokens


def fitted(tokens: Sequence[float], milliseconds: Sequence[float]) -> Cost:
    """The straight line through measured passes, by least squares."""
    slope, fixed = statistics.linear_regression(tokens, milliseconds)
    return Cost(fixed, slope)


def waits(
    sizes: Sequence[int], cost: Cost, *, rate: float, lanes: int, budget: int, short: int, texts: int, seed: int = 0
) -> list[float]:
    """Milliseconds from arrival to answer of so many texts that arrive at random, sorted.

    Args:
        sizes: tokens of the texts, of which each arrival draws one.
        rate: texts a second.
        short: tokens of a short pass; see `services.inference.engine.token_share`.
    """
    chance = random.Random(seed)
    arrivals: list[tuple[float, int]] = []
    at = 0.0
    for _ in range(texts):
        at += 1000 * chance.expovariate(rate)
        arrivals.append((at, chance.choice(sizes)))
    free, queue, coming, found = [0.0] * lanes, list[tuple[float, int]](), 0, list[float]()
    while coming < texts or queue:
        lane = min(range(lanes), key=free.__getitem__)
        begins = max(free[lane], queue[0][0] if queue else arrivals[coming][0])
        while coming < texts and arrivals[coming][0] <= begins:
            queue.append(arrivals[coming])
            coming += 1
        idle = sum(end <= begins for end in free) - 1
        tokens = [size for _, size in queue]
        most = token_share(sum(tokens), idle=idle, replicas=lanes, budget=budget, short_pass=short)
        batch = set(choose_batch(tokens, most, padded=False))
        free[lane] = begins + cost.of(sum(tokens[index] for index in batch))
        found += [free[lane] - queue[index][0] for index in batch]
        queue = [one for index, one in enumerate(queue) if index not in batch]
    return sorted(found)
