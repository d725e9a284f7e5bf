"""A simulation of the queue before the lanes, which share it by the service's own rule, for passes of a given cost."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from services.inference.engine import Size, choose_batch, token_share


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a pass in milliseconds: `fixed`, and `a_token` for each token."""

    fixed: float
    a_token: float

    def of(self, tokens: int) -> float:
        """Return the milliseconds of a pass of so many tokens."""
        return self.fixed + self.a_token * tokens


def fit_cost(tokens: Sequence[float], milliseconds: Sequence[float]) -> Cost:
    """Fit a straight line to measured passes by least squares."""
    slope, fixed = statistics.linear_regression(tokens, milliseconds)
    return Cost(fixed, slope)


def simulate_waits(
    sizes: Sequence[int], cost: Cost, *, rate: float, lanes: int, budget: int, short: int, texts: int, seed: int = 0
) -> list[float]:
    """Return the milliseconds from arrival to answer of so many texts that arrive as a Poisson process, sorted.

    Args:
        sizes: numbers of tokens, one of which each arrival draws.
        rate: texts a second.
        short: tokens of a short pass; see `services.inference.engine.token_share`.
    """
    generator = random.Random(seed)
    arrivals: list[tuple[float, int]] = []
    at = 0.0
    for _ in range(texts):
        at += 1000 * generator.expovariate(rate)
        arrivals.append((at, generator.choice(sizes)))
    free_at, queue, next_arrival, waits = [0.0] * lanes, list[tuple[float, int]](), 0, list[float]()
    while next_arrival < texts or queue:
        lane = min(range(lanes), key=free_at.__getitem__)
        begins = max(free_at[lane], queue[0][0] if queue else arrivals[next_arrival][0])
        while next_arrival < texts and arrivals[next_arrival][0] <= begins:
            queue.append(arrivals[next_arrival])
            next_arrival += 1
        idle = sum(end <= begins for end in free_at) - 1
        tokens = [size for _, size in queue]
        most = token_share(sum(tokens), idle=idle, replicas=lanes, budget=budget, short_pass=short)
        batch = set(choose_batch([Size(count) for count in tokens], most, padded=False))
        free_at[lane] = begins + cost.of(sum(tokens[index] for index in batch))
        waits += [free_at[lane] - queue[index][0] for index in batch]
        queue = [text for index, text in enumerate(queue) if index not in batch]
    return sorted(waits)
