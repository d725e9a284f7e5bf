"""Measure aggregators and inference services by their number of replicas, on one machine: `python -m benchmarks.replicas`."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine import describe_machine
from benchmarks.output import RESULTS, log_progress, measure_or_report
from benchmarks.replicas.failover import measure_failover
from benchmarks.replicas.inference import measure_inference
from benchmarks.replicas.report import markdown
from benchmarks.replicas.throughput import measure_throughput, median_row
from benchmarks.shutdown import exit_on_sigterm


def main() -> None:
    """Measure, or read stored results; print the tables and write them."""
    exit_on_sigterm()
    measure_or_report("replicas", _parse_arguments(), _measure, markdown)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replicas", description=__doc__)
    parser.add_argument("--aggregators", type=int, nargs="*", default=[1, 2, 3], help="replica counts of the aggregator")
    parser.add_argument("--clients", type=int, default=240, help="simulated clients of a task")
    parser.add_argument("--rate", type=float, default=20.0, help="contributions a second while a replica is killed")
    parser.add_argument(
        "--inference", type=int, nargs="*", default=[1, 2], help="replica counts of inference; they share the cores"
    )
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 32], help="callers of inference")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of one measurement of inference")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each row, whose medians are reported")
    parser.add_argument("--model", default="smollm2-135m", help="catalogue name, Hugging Face id or folder")
    parser.add_argument("--cache", type=Path, default=None, help="folder of downloaded and converted models")
    parser.add_argument(
        "--out", "--json", type=Path, default=RESULTS / "replicas.json", help="file of the results; tables go beside it"
    )
    parser.add_argument("--report", action="store_true", help="measure nothing; write the tables of the results in --out")
    return parser.parse_args()


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run all measurements that the options request; rows that are compared alternate."""
    load = round(psutil.getloadavg()[0], 1)
    runs: dict[int, list[dict[str, float]]] = {count: [] for count in options.aggregators}
    for _ in range(options.repeats):
        for count in options.aggregators:
            runs[count].append(measure_throughput(count, options.clients))
            log_progress(f"{count} aggregators: {runs[count][-1]['contributions_per_second']:.0f} contributions/s")
    failovers = []
    for count in options.aggregators:
        failovers.append(measure_failover(count, options.clients, options.rate))
        log_progress(f"{count} aggregators, one killed: outage of {failovers[-1]['longest_silence_seconds']} s")
    inference: list[dict[str, Any]] = []
    if options.inference:
        with tempfile.TemporaryDirectory() as folder:
            inference = measure_inference(options, Path(folder))
    return {
        "machine": {"at": time.strftime("%Y-%m-%d"), "load_average_before": load} | describe_machine(),
        "clients": options.clients,
        "repeats": options.repeats,
        "model": options.model,
        "aggregators": [median_row(count, measured) for count, measured in runs.items()],
        "survival": failovers,
        "inference": inference,
    }


if __name__ == "__main__":
    main()
