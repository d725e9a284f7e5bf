"""How fast so many aggregators take a task's contributions. Prints nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import psutil

from benchmarks.aggregator.report import percentile
from benchmarks.aggregator.simulated_clients import Federation, Payload
from benchmarks.replicas.replica_set import connected, fleet
from testing.factories import ADMIN_TOKEN

SMALL = Payload(18, 640, 16)
ROUNDS = 2  # of calibration; a context round comes before them and an evaluation round after
CONNECTIONS = 24  # of the simulated clients; 1, 2 and 3 divide it


def throughput(replicas: int, clients: int) -> dict[str, float]:
    """One whole task from its start to its end on fresh servers."""
    with fleet(replicas) as running:

        async def work() -> dict[str, float]:
            async with connected(running.ports, CONNECTIONS) as wire:
                task = Federation(wire, ADMIN_TOKEN, "bench", SMALL)
                await task.gather(clients, rounds=ROUNDS)
                before = running.cpu_seconds(), time.process_time(), _busy()
                took = sum(await task.run())
                used = running.cpu_seconds() - before[0], time.process_time() - before[1], _busy() - before[2]
                updates = wire.seconds["update"]
            return {
                "contributions_per_second": task.contributions / took,
                "update_p50_ms": 1000 * percentile(updates, 50),
                "update_p99_ms": 1000 * percentile(updates, 99),
                "cores_of_aggregators": used[0] / took,
                "cores_of_the_driver": used[1] / took,
                "cores_of_the_machine": used[2] / took,
            }

        return asyncio.run(work())


def _busy() -> float:
    """Processor seconds that the whole machine has worked since it started."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    return float(sum(times[:7]) - idle)  # what guests used is in the first of them already


def row(replicas: int, runs: Sequence[dict[str, float]]) -> dict[str, Any]:
    """The medians of several runs."""
    middle = {name: round(median(run[name] for run in runs), 2) for name in runs[0]}
    each = [round(run["contributions_per_second"], 1) for run in runs]
    return {"replicas": replicas, **middle, "contributions_per_second_each": each}
