"""Run whole rounds with many clients on this aggregator and on Flower: `python -m benchmarks.aggregator`."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.aggregator.flower import measure_flower
from benchmarks.aggregator.http_connections import connect
from benchmarks.aggregator.report import Result, goals, markdown, medians, percentile, table
from benchmarks.aggregator.servers import start_servers
from benchmarks.aggregator.simulated_clients import Payload, SimulatedTask
from benchmarks.output import RESULTS, log_progress, measure_or_report
from benchmarks.shutdown import exit_on_sigterm
from testing.factories import ADMIN_TOKEN

SMALL, LARGE = Payload(18, 640, 16), Payload(32, 4096, 8)
ROUNDS = 2  # of calibration; a context round comes before them and an evaluation round after
PACED_RATE, PACED_CLIENTS = 100.0, 1000


def main() -> None:
    """Measure, or read stored results; print the tables and write them."""
    exit_on_sigterm()
    measure_or_report("aggregator", _parse_arguments(), _measure, markdown)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aggregator", description=__doc__)
    parser.add_argument(
        "--clients", type=int, nargs="*", default=[10, 100, 1000, 10_000], help="numbers of clients with payload 18x2x640"
    )
    parser.add_argument("--large", type=int, nargs="*", default=[10, 100, 1000], help="numbers of clients with payload 32x2x4096")
    parser.add_argument(
        "--flower",
        type=int,
        nargs="*",
        default=[5, 10, 20],
        help="numbers of clients to try on Flower, and here beside it; stops at the first that fails",
    )
    parser.add_argument(
        "--flower-venv",
        type=Path,
        default=Path(".cache/flower"),
        help="virtual environment of Flower; created if it does not exist",
    )
    parser.add_argument("--flower-minutes", type=float, default=8.0, help="time limit of Flower for one number of clients")
    parser.add_argument("--connections", type=int, default=16, help="HTTP connections that the simulated clients share")
    parser.add_argument("--runs", type=int, default=3, help="runs of each small number of clients, whose medians are reported")
    parser.add_argument(
        "--out", "--json", type=Path, default=RESULTS / "aggregator.json", help="file of the results; tables go beside it"
    )
    parser.add_argument("--report", action="store_true", help="measure nothing; write the tables of the results in --out")
    return parser.parse_args()


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run all measurements that the options request."""
    runs = [_median_run(SMALL, clients, options) for clients in options.clients]
    runs += [_median_run(LARGE, clients, options) for clients in options.large]
    paced = [_measure_paced(options.connections) for _ in range(options.runs)] if options.clients else []
    flower = measure_flower(options.flower, options.flower_venv, SMALL, ROUNDS, options.flower_minutes * 60)
    runs += [_median_run(SMALL, result.clients, options) for result in flower if result.clients not in options.clients]
    runs += flower
    machine: dict[str, Any] = {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    machine |= {"load_after": os.getloadavg()[0], "at": time.strftime("%Y-%m-%d")}
    return {
        "machine": machine,
        "runs": [asdict(run) for run in runs],
        "paced": paced,
        "goals": [asdict(goal) for goal in goals(runs, paced)],
    }


def _median_run(payload: Payload, clients: int, options: argparse.Namespace) -> Result:
    """Return the medians of several runs; of one run for sizes that take long."""
    count = options.runs if clients * payload.hidden <= 1000 * SMALL.hidden else 1
    runs = []
    for _ in range(count):
        runs.append(_measure_task(payload, clients, options.connections))
        log_progress(table(runs[-1:]).splitlines()[-1])
    return medians(runs)


def _measure_task(payload: Payload, clients: int, connections: int) -> Result:
    """Run one task from start to end on fresh servers."""
    with start_servers() as servers:

        async def run() -> tuple[SimulatedTask, list[float], dict[str, list[float]], float]:
            async with connect(servers.aggregator.port, connections) as pool:
                task = SimulatedTask(pool, ADMIN_TOKEN, "bench", payload)
                await task.create(clients, rounds=ROUNDS)
                cpu_before = servers.cpu_seconds()
                round_seconds = await task.run()
                return task, round_seconds, pool.seconds, servers.cpu_seconds() - cpu_before

        task, round_seconds, latencies, cpu = asyncio.run(run())
        contributions = latencies["context"] + latencies["update"]
        return Result(
            system="ifed",
            payload=str(payload),
            clients=clients,
            rounds_per_second=len(round_seconds) / sum(round_seconds),
            contributions_per_second=task.contributions / sum(round_seconds),
            context_p50_ms=1000 * percentile(latencies["context"], 50),
            context_p99_ms=1000 * percentile(latencies["context"], 99),
            update_p50_ms=1000 * percentile(latencies["update"], 50),
            update_p99_ms=1000 * percentile(latencies["update"], 99),
            peak_megabytes=servers.peak_megabytes(),
            database_megabytes=servers.database_bytes() / 2**20,
            cpu_ms_per_contribution=1000 * cpu / len(contributions),
            round_seconds=round_seconds,
        )


def _measure_paced(connections: int) -> dict[str, float]:
    """Return the latency of updates that are sent at a steady rate."""
    with start_servers() as servers:

        async def run() -> list[float]:
            async with connect(servers.aggregator.port, connections) as pool:
                task = SimulatedTask(pool, ADMIN_TOKEN, "bench", SMALL)
                await task.create(PACED_CLIENTS, rounds=1)
                await task.start()
                await task.run_round()
                await task.run_round_at_rate(PACED_RATE)
                return pool.seconds["paced"]

        latencies = asyncio.run(run())
    return {"per_second": PACED_RATE, "p50_ms": 1000 * percentile(latencies, 50), "p99_ms": 1000 * percentile(latencies, 99)}


if __name__ == "__main__":
    main()
