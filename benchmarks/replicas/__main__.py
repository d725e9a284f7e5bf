"""`python -m benchmarks.replicas`: aggregators and inference services by replica count, on one machine; prints tables, writes JSON."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine import machine
from benchmarks.replicas import report
from benchmarks.replicas.failover import survival
from benchmarks.replicas.inference import inference
from benchmarks.replicas.throughput import row, throughput
from benchmarks.shutdown import end_on_sigterm
from benchmarks.tables import write_into


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replicas", description=__doc__)
    parser.add_argument("--aggregators", type=int, nargs="*", default=[1, 2, 3], help="replica counts of the aggregator")
    parser.add_argument("--clients", type=int, default=240, help="simulated clients of a task")
    parser.add_argument("--rate", type=float, default=20.0, help="contributions a second while a replica is lost")
    parser.add_argument(
        "--inference", type=int, nargs="*", default=[1, 2], help="replica counts of inference; they share the cores"
    )
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 32], help="callers of inference")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of one measurement of inference")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each row, of which the medians are told")
    parser.add_argument("--model", default="smollm2-135m", help="catalogue name, Hugging Face id or folder")
    parser.add_argument("--cache", type=Path, default=None, help="folder of downloaded and converted models")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--page", type=Path, help="a page that takes the tables between its marks")
    return parser.parse_args()


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that was asked for. Rows that are compared take turns."""
    load = round(psutil.getloadavg()[0], 1)
    runs: dict[int, list[dict[str, float]]] = {count: [] for count in options.aggregators}
    for _ in range(options.repeats):
        for count in options.aggregators:
            runs[count].append(throughput(count, options.clients))
            _say(f"{count} aggregators: {runs[count][-1]['contributions_per_second']:.0f} contributions/s")
    lost = []
    for count in options.aggregators:
        lost.append(survival(count, options.clients, options.rate))
        _say(f"{count} aggregators, one killed: silence of {lost[-1]['longest_silence_seconds']} s")
    answers: list[dict[str, Any]] = []
    if options.inference:
        with tempfile.TemporaryDirectory() as folder:
            answers = inference(options, Path(folder))
    return {
        "machine": {"at": time.strftime("%Y-%m-%d"), "load_average_before": load} | machine(),
        "clients": options.clients,
        "repeats": options.repeats,
        "model": options.model,
        "aggregators": [row(count, found) for count, found in runs.items()],
        "survival": lost,
        "inference": answers,
    }


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def main() -> None:
    """Read the options, measure, tell."""
    end_on_sigterm()
    options = arguments()
    found = measured(options)
    words = report.tables(found)
    print(words)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.page is not None:
        write_into(options.page, words)


if __name__ == "__main__":
    main()
