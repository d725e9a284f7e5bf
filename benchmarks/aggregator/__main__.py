"""`python -m benchmarks.aggregator`: whole rounds with many clients, on this aggregator and on Flower; prints a table, writes JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.aggregator import flower
from benchmarks.aggregator.http_connections import connected
from benchmarks.aggregator.report import Figures, goals, medians, percentile, table
from benchmarks.aggregator.servers import running
from benchmarks.aggregator.simulated_clients import Federation, Payload
from benchmarks.shutdown import end_on_sigterm
from testing.factories import ADMIN_TOKEN

SMALL, LARGE = Payload(18, 640, 16), Payload(32, 4096, 8)
ROUNDS = 2  # of calibration; a context round comes before them and an evaluation round after
PACED_RATE, PACED_CLIENTS = 100.0, 1000


def measure(payload: Payload, clients: int, connections: int) -> Figures:
    """One whole task, from its start to its end, on fresh servers."""
    with running() as stack:

        async def work() -> tuple[Federation, list[float], dict[str, list[float]], float]:
            async with connected(stack.aggregator.port, connections) as wire:
                task = Federation(wire, ADMIN_TOKEN, "bench", payload)
                await task.gather(clients, rounds=ROUNDS)
                used = stack.cpu_seconds()
                took = await task.run()
                return task, took, wire.seconds, stack.cpu_seconds() - used

        task, took, seconds, cpu = asyncio.run(work())
        sent = seconds["context"] + seconds["update"]
        return Figures(
            system="ifed",
            payload=str(payload),
            clients=clients,
            rounds_per_second=len(took) / sum(took),
            contributions_per_second=task.contributions / sum(took),
            context_p50_ms=1000 * percentile(seconds["context"], 50),
            context_p99_ms=1000 * percentile(seconds["context"], 99),
            update_p50_ms=1000 * percentile(seconds["update"], 50),
            update_p99_ms=1000 * percentile(seconds["update"], 99),
            peak_megabytes=stack.peak_megabytes(),
            database_megabytes=stack.database_bytes() / 2**20,
            cpu_ms_per_contribution=1000 * cpu / len(sent),
            round_seconds=took,
        )


def paced(connections: int) -> dict[str, float]:
    """Updates at a steady rate: how long each waits for its answer."""
    with running() as stack:

        async def work() -> list[float]:
            async with connected(stack.aggregator.port, connections) as wire:
                task = Federation(wire, ADMIN_TOKEN, "bench", SMALL)
                await task.gather(PACED_CLIENTS, rounds=1)
                await task.start()
                await task.whole_round()
                await task.paced(PACED_RATE)
                return wire.seconds["paced"]

        seconds = asyncio.run(work())
    return {"per_second": PACED_RATE, "p50_ms": 1000 * percentile(seconds, 50), "p99_ms": 1000 * percentile(seconds, 99)}


def several(payload: Payload, clients: int, options: argparse.Namespace) -> Figures:
    """The medians of several runs; of one for counts that take long."""
    runs = options.runs if clients * payload.hidden <= 1000 * SMALL.hidden else 1
    found = []
    for _ in range(runs):
        found.append(measure(payload, clients, options.connections))
        print(table(found[-1:]).splitlines()[-1], flush=True)
    return medians(found)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aggregator", description=__doc__)
    parser.add_argument("--clients", type=int, nargs="*", default=[10, 100, 1000, 10_000], help="counts for 18x2x640")
    parser.add_argument("--large", type=int, nargs="*", default=[10, 100, 1000], help="counts for 32x2x4096")
    parser.add_argument(
        "--flower",
        type=int,
        nargs="*",
        default=[5, 10, 20],
        help="counts to try on Flower, and here beside it; it ends at the first that fails",
    )
    parser.add_argument(
        "--flower-venv", type=Path, default=Path(".cache/flower"), help="where Flower's own environment is or is made"
    )
    parser.add_argument("--flower-minutes", type=float, default=8.0, help="how long Flower may take for one count")
    parser.add_argument("--connections", type=int, default=16, help="HTTP connections that the simulated clients share")
    parser.add_argument("--runs", type=int, default=3, help="runs of each small count, of which the medians are told")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    return parser.parse_args()


def main() -> None:
    """Run everything that was asked for."""
    end_on_sigterm()
    options = arguments()
    found = [several(SMALL, clients, options) for clients in options.clients]
    found += [several(LARGE, clients, options) for clients in options.large]
    steady = [paced(options.connections) for _ in range(options.runs)] if options.clients else []
    theirs = flower.measured(options.flower, options.flower_venv, SMALL, ROUNDS, options.flower_minutes * 60)
    found += [several(SMALL, one.clients, options) for one in theirs if one.clients not in options.clients]
    found += theirs
    print(f"\n{table(found)}")
    for one in steady:
        print(f"updates at {one['per_second']:.0f}/s: p50 {one['p50_ms']:.1f} ms, p99 {one['p99_ms']:.1f} ms")
    reached = goals(found, steady)
    for goal in reached:
        print(f"{goal.goal}: {'not measured' if goal.met is None else goal.measured}{'' if goal.met is not False else ', not met'}")
    if options.json is not None:
        machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        machine |= {"load_after": os.getloadavg()[0], "at": time.strftime("%Y-%m-%d")}
        told = {"runs": [asdict(one) for one in found], "paced": steady, "goals": [asdict(one) for one in reached]}
        options.json.write_text(json.dumps({"machine": machine} | told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
