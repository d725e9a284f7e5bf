"""`python -m benchmarks.serving`: starts the service, drives it with 1 to 128 callers, prints a table and writes JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from pathlib import Path

from benchmarks.machine import machine
from benchmarks.serving.measurements import COMPARED, measure_all
from benchmarks.serving.report import goals, table
from benchmarks.shutdown import end_on_sigterm


def main() -> None:
    """Read the options, measure, tell."""
    end_on_sigterm()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--texts", type=Path, required=True, help="JSONL with `text` and `label`, AG News for one")
    parser.add_argument("--demonstrations", type=Path, required=True, help="JSONL likewise, for the few-shot prompts")
    parser.add_argument("--model", default="smollm2-135m", help="catalogue name, Hugging Face id or folder")
    parser.add_argument("--cache", type=Path, default=None, help="folder of downloaded and converted models")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--tasks", type=int, nargs=2, default=[64, 1000], help="how many tasks are mixed")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one measurement")
    parser.add_argument("--turns", type=int, default=16, help="turns of one task, many tasks and the bare model on the same texts")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each row at 1 and 32 callers, taken in turn")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads of a model; all cores by default")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/serving.json"))
    options = parser.parse_args()
    if missing := set(COMPARED) - set(options.callers):
        parser.error(f"the goals stand at {COMPARED[0]} and {COMPARED[1]} callers; --callers lacks {sorted(missing)}")
    with tempfile.TemporaryDirectory() as folder:
        rows, half = asyncio.run(measure_all(options, Path(folder)))
    found = {
        "machine": machine(),
        "model": options.model,
        "threads": options.threads,
        "seconds": options.seconds,
        "repeats": options.repeats,
        "turns": options.turns,
        "rows": [row.json() for row in rows],
        "half_load": half,
        "goals": goals(rows, half),
    }
    half_load = (
        f"half load, {half['requests_per_second']:.1f} requests/s at random: p50 {half['p50_ms']:.0f} ms, p95 {half['p95_ms']:.0f}"
    )
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    print(table(rows))
    print(f"\n{half_load}, p99 {half['p99_ms']:.0f}; one caller alone {half['single_request_ms']:.0f} ms; medians of turns\n")
    for goal in found["goals"]:
        by_cpu = "" if goal["by_cpu_time"] is None else f" ({goal['by_cpu_time']:.2f} times by the CPU time of a request)"
        print(f"{'met   ' if goal['met'] else 'MISSED'}  {goal['goal']}: {goal['measured']}{by_cpu}")
    print(f"Figures in {options.out}.")


if __name__ == "__main__":
    main()
