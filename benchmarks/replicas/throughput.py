"""The rate at which several aggregators take a task's contributions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import psutil

from benchmarks.aggregator.report import percentile
from benchmarks.aggregator.simulated_clients import Payload, SimulatedTask
from benchmarks.replicas.replica_set import connect, start_replicas
from testing.factories import ADMIN_TOKEN

SMALL = Payload(18, 640, 16)
ROUNDS = 2  # of calibration; a context round comes before them and an evaluation round after
CONNECTIONS = 24  # of the simulated clients; 1, 2 and 3 divide it


def measure_throughput(replicas: int, clients: int) -> dict[str, float]:
    """Run one task from start to end on fresh servers."""
    with start_replicas(replicas) as replica_set:

        async def run() -> dict[str, float]:
            async with connect(replica_set.ports, CONNECTIONS) as pool:
                task = SimulatedTask(pool, ADMIN_TOKEN, "bench", SMALL)
                await task.create(clients, rounds=ROUNDS)
                before = replica_set.cpu_seconds(), time.process_time(), _machine_cpu_seconds()
                seconds = sum(await task.run())
                after = replica_set.cpu_seconds(), time.process_time(), _machine_cpu_seconds()
                cores = [(end - start) / seconds for start, end in zip(before, after, strict=True)]
                updates = pool.seconds["update"]
            return {
                "contributions_per_second": task.contributions / seconds,
                "update_p50_ms": 1000 * percentile(updates, 50),
                "update_p99_ms": 1000 * percentile(updates, 99),
                "cores_of_aggregators": cores[0],
                "cores_of_the_driver": cores[1],
                "cores_of_the_machine": cores[2],
            }

        return asyncio.run(run())


def _machine_cpu_seconds() -> float:
    """Return the processor seconds that the machine has used since it started."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    return float(sum(times[:7]) - idle)  # the first fields include the time of guests


def median_row(replicas: int, runs: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Return the medians of several runs."""
    medians = {name: round(median(run[name] for run in runs), 2) for name in runs[0]}
    rates = [round(run["contributions_per_second"], 1) for run in runs]
    return {"replicas": replicas, **medians, "contributions_per_second_each": rates}
