"""`python -m benchmarks.modeling --data FOLDER`: the published procedure against ours, as a table and as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.modeling.measurements import Setting, overheads, speeds
from benchmarks.modeling.options import loaded_otherwise, options
from benchmarks.modeling.report import tables
from benchmarks.modeling.roofline import ceilings
from benchmarks.modeling.texts import SOURCES, read
from ifed.downloads import cache_folder
from ifed.modeling.catalog import CATALOG
from ifed.modeling.loading import load


def main() -> None:
    """Measure every model on every data set and write what was found after each, so that an interruption loses little."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.modeling", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with subj.train.jsonl and agnews.train.jsonl")
    parser.add_argument("--models", nargs="+", default=sorted(CATALOG), help="catalogue names")
    parser.add_argument("--cache", type=Path, default=None, help="folder of converted models")
    parser.add_argument("--texts", type=int, default=32, help="texts of each measurement")
    parser.add_argument("--repetitions", type=int, default=3, help="the median of so many is given")
    parser.add_argument("--pairs", type=int, default=15, help="alternating pairs behind each overhead")
    parser.add_argument("--option-pairs", type=int, default=3, help="alternating pairs behind each option")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    given = parser.parse_args()
    if min(given.pairs, given.option_pairs) < 2:
        parser.error("quartiles need at least two pairs: raise --pairs and --option-pairs")
    found: dict[str, Any] = {
        "machine": _machine(),
        "command": " ".join(["python -m benchmarks.modeling", *_told(given)]),
        "runs": [],
    }
    for name in given.models:
        exact = load(name, cache=cache_folder(given.cache), dtype="float32")
        fast = load(name, cache=cache_folder(given.cache))
        for source in SOURCES:
            examples = read(given.data, source, given.texts)
            setting = Setting(exact, fast, source, examples, given.repetitions, CATALOG[name].groups)
            run = {"model": name, "data": source.name, "dtype": str(fast.dtype).removeprefix("torch."), "source": asdict(source)}
            run |= {"ceilings": ceilings(setting)}
            run |= {"milliseconds": speeds(setting), "overheads": overheads(setting, pairs=given.pairs)}
            run |= {"options": options(setting, pairs=given.option_pairs)}
            if source == SOURCES[0]:  # loading and compiling take longer than measuring
                run["options"] |= loaded_otherwise(setting, name, cache_folder(given.cache), pairs=given.option_pairs)
            found["runs"].append(run)
            print(f"{name} on {source.name}: done", file=sys.stderr, flush=True)
            if given.out is not None:
                given.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(tables(found))


def _machine() -> dict[str, Any]:
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


def _told(given: argparse.Namespace) -> list[str]:
    """The arguments that change what is measured; folders are the caller's own."""
    return [
        "--data FOLDER",
        *([] if given.models == sorted(CATALOG) else [f"--models {' '.join(given.models)}"]),
        f"--texts {given.texts}",
        f"--repetitions {given.repetitions}",
        f"--pairs {given.pairs}",
        f"--option-pairs {given.option_pairs}",
    ]


if __name__ == "__main__":
    main()
