"""Measure the published procedure and ours on the same texts: `python -m benchmarks.modeling --data FOLDER`."""

from __future__ import annotations

import argparse
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.datasets import DATASETS, read_examples
from benchmarks.modeling.measurements import Setting, overheads, speeds
from benchmarks.modeling.options import measure_load_options, measure_options
from benchmarks.modeling.report import markdown
from benchmarks.modeling.roofline import speedup_limits
from benchmarks.output import RESULTS, log_progress, measure_or_report, write_json
from ifed.downloads import cache_folder
from ifed.modeling.catalog import CATALOG
from ifed.modeling.loading import load

MEASURED_DATASETS = ("subj", "agnews")


def main() -> None:
    """Measure, or read stored results; print the tables and write them."""
    measure_or_report("modeling", _parse_arguments(), _measure, markdown)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.modeling", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with subj.train.jsonl and agnews.train.jsonl; not needed with --report")
    parser.add_argument("--models", nargs="+", default=sorted(CATALOG), help="catalogue names")
    parser.add_argument("--cache", type=Path, default=None, help="folder of converted models")
    parser.add_argument("--texts", type=int, default=32, help="texts of each measurement")
    parser.add_argument("--repetitions", type=int, default=3, help="repetitions of each measurement, whose median is reported")
    parser.add_argument("--pairs", type=int, default=15, help="alternating pairs behind each overhead")
    parser.add_argument("--option-pairs", type=int, default=3, help="alternating pairs behind each option")
    parser.add_argument("--out", type=Path, default=RESULTS / "modeling.json", help="file of the results; tables go beside it")
    parser.add_argument("--report", action="store_true", help="measure nothing; write the tables of the results in --out")
    arguments = parser.parse_args()
    if not arguments.report and arguments.data is None:
        parser.error("--data names the folder of the data sets")
    if min(arguments.pairs, arguments.option_pairs) < 2:
        parser.error("quartiles need at least two pairs: raise --pairs and --option-pairs")
    return arguments


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure every model on every data set; write the results after each, so that an interruption loses little."""
    results: dict[str, Any] = {
        "machine": _describe_processor(),
        "command": " ".join(["python -m benchmarks.modeling", *_measuring_arguments(arguments)]),
        "runs": [],
    }
    cache = cache_folder(arguments.cache)
    for name in arguments.models:
        exact = load(name, cache=cache, dtype="float32")
        fast = load(name, cache=cache)
        for key in MEASURED_DATASETS:
            dataset = DATASETS[key]
            examples = read_examples(arguments.data, dataset, "train", arguments.texts)
            setting = Setting(exact, fast, dataset, examples, arguments.repetitions, CATALOG[name].groups)
            run = {
                "model": name,
                "data": dataset.title,
                "dtype": str(fast.dtype).removeprefix("torch."),
                "source": asdict(dataset),
            }
            run |= {"ceilings": speedup_limits(setting)}
            run |= {"milliseconds": speeds(setting), "overheads": overheads(setting, pairs=arguments.pairs)}
            run |= {"options": measure_options(setting, pairs=arguments.option_pairs)}
            if key == MEASURED_DATASETS[0]:  # loading and compiling take longer than measuring
                run["options"] |= measure_load_options(setting, name, cache, pairs=arguments.option_pairs)
            results["runs"].append(run)
            log_progress(f"{name} on {dataset.title}: finished")
            write_json(arguments.out, results)
    return results


def _describe_processor() -> dict[str, Any]:
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load": os.getloadavg(),
        "capabilities": sorted(
            name for name, has in torch.cpu.get_capabilities().items() if has is True and name.startswith(("avx512", "amx"))
        ),
    }


def _measuring_arguments(arguments: argparse.Namespace) -> list[str]:
    """Return the arguments that change what is measured; the folders differ from machine to machine."""
    return [
        "--data FOLDER",
        *([] if arguments.models == sorted(CATALOG) else [f"--models {' '.join(arguments.models)}"]),
        f"--texts {arguments.texts}",
        f"--repetitions {arguments.repetitions}",
        f"--pairs {arguments.pairs}",
        f"--option-pairs {arguments.option_pairs}",
    ]


if __name__ == "__main__":
    main()
