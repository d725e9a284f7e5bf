"""Measure the inference service with 1 to 128 callers, beside a plain endpoint: `python -m benchmarks.serving`."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from benchmarks.output import RESULTS, measure_or_report
from benchmarks.serving.measurements import COMPARED_CALLERS, measure_all
from benchmarks.serving.report import goals, markdown
from benchmarks.shutdown import exit_on_sigterm


def main() -> None:
    """Measure, or read stored results; print the tables and write them."""
    exit_on_sigterm()
    measure_or_report("serving", _parse_arguments(), _measure, markdown)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--texts", type=Path, help="JSONL with `text` and `label`, for example AG News; not needed with --report")
    parser.add_argument("--demonstrations", type=Path, help="the same for the few-shot prompts")
    parser.add_argument("--model", default="smollm2-135m", help="catalogue name, Hugging Face id or folder")
    parser.add_argument("--cache", type=Path, default=None, help="folder of downloaded and converted models")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 8, 32, 128], help="numbers of concurrent callers")
    parser.add_argument("--tasks", type=int, nargs=2, default=[64, 1000], help="numbers of tasks that share the model")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one measurement")
    parser.add_argument("--turns", type=int, default=16, help="turns of one task, many tasks and the base model on the same texts")
    parser.add_argument("--repeats", type=int, default=3, help="alternating measurements of each row at 1 and 32 callers")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads of a model; all cores by default")
    parser.add_argument("--out", type=Path, default=RESULTS / "serving.json", help="file of the results; tables go beside it")
    parser.add_argument("--report", action="store_true", help="measure nothing; write the tables of the results in --out")
    options = parser.parse_args()
    if not options.report and (options.texts is None or options.demonstrations is None):
        parser.error("--texts and --demonstrations name the files of texts")
    if missing := set(COMPARED_CALLERS) - set(options.callers):
        low, high = COMPARED_CALLERS
        parser.error(f"the goals are evaluated at {low} and {high} callers; --callers must include {sorted(missing)}")
    return options


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        rows, half = asyncio.run(measure_all(options, Path(folder)))
    return {
        "machine": describe_machine(),
        "model": options.model,
        "threads": options.threads,
        "seconds": options.seconds,
        "repeats": options.repeats,
        "turns": options.turns,
        "rows": [row.json() for row in rows],
        "half_load": half,
        "goals": goals(rows, half),
    }


if __name__ == "__main__":
    main()
