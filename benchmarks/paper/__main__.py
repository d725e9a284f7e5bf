"""Run the paper's experiment, cell by cell: `python -m benchmarks.paper --data FOLDER`; print its tables and draw its plots."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.datasets import DATASETS, MIN_CLIENT_EXAMPLES, InvalidDataset, digest_examples, dirichlet_split, read_splits
from benchmarks.machine import describe_machine
from benchmarks.output import RESULTS, log_progress, write_json, write_tables
from benchmarks.paper.methods import (
    ONE_SEED,
    QUICK,
    QUICK_METHODS,
    QUICK_RATES,
    RATES,
    RESTRICTED_DATASETS,
    SETTINGS,
    SWEEP_SEED,
    TITLES,
    Plan,
    runs_on,
)
from benchmarks.paper.plots import DESCRIPTIONS, draw
from benchmarks.paper.report import markdown, tables
from benchmarks.paper.runner import CellRunner
from benchmarks.paper.store import CellMismatch, CellStore
from ifed.downloads import cache_folder
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.loading import load

MODEL = "gemma-3-270m"
PLAN_HELP = {
    "clients": f"number of clients, of at least {MIN_CLIENT_EXAMPLES} examples each",
    "alpha": "concentration of the Dirichlet distribution of a label among the clients; small is uneven",
    "rounds": "rounds of every method, but for those that have more by definition",
    "local_steps": "local steps of a client in a round, likewise",
    "batch_size": "examples of a local step",
    "training": "training examples that are divided among the clients",
    "test": "test examples on which accuracy is measured",
    "shots": "largest number of demonstrations in a few-shot prompt",
    "few": "test examples on which global and local coefficients are compared",
    "few_seeds": "number of seeds, the first ones, for which they are compared",
    "lora_rank": "rank of each adapter",
}


def main() -> None:
    """Run every missing cell and report on all; each cell is a file, so an interrupted run resumes."""
    arguments = _parse_arguments()
    plan = _plan(arguments)
    store = CellStore(arguments.out or _default_folder(arguments), plan, arguments.model)
    rates = tuple(arguments.lora_rates or (QUICK_RATES if arguments.quick else RATES))
    try:
        if not arguments.report:
            _run(arguments, plan, store, rates)
        results = store.collect(rates)
    except (CellMismatch, InvalidDataset) as refusal:
        sys.exit(str(refusal))
    except KeyboardInterrupt:
        log_progress("interrupted; the same command resumes with the missing cells")
        sys.exit(130)
    if not results["data"]:
        hint = (
            "run without --report, or name another folder with --out" if arguments.report else "all requested methods are left out"
        )
        sys.exit(f"there are no cells under {store.folder}; {hint}")
    _report(arguments, store.folder, results)


def _report(arguments: argparse.Namespace, folder: Path, results: dict[str, Any]) -> None:
    """Print the tables, and write them, the plots and the JSON into the folder."""
    for key, data in results["data"].items():
        if data["sweep"] and data["rate"] is None:
            log_progress(
                f"{DATASETS[key].title}: FedAvg-LoRA has no accuracy and no seconds until all of its learning rates have run on seed {SWEEP_SEED}"
            )
    text = markdown(results)
    print(text)
    write_json(folder / "paper.json", results | {"tables": [table.json() for table in tables(results)]})
    images = []
    for path in draw(results, folder):
        log_progress(f"drew {path.name}")
        if path.suffix == ".svg":
            images.append(f"![{DESCRIPTIONS[path.stem]}]({path.name})")
    out = [] if folder == RESULTS / "paper" else ["--out", str(folder)]
    rates = ["--lora-rates", *map(str, arguments.lora_rates)] if arguments.lora_rates else []
    command = " ".join(["python -m benchmarks.paper --report", *out, *rates])
    write_tables(folder / "tables.md", "\n\n".join([text, *images]), command=command)


def _default_folder(arguments: argparse.Namespace) -> Path:
    """Return a folder for each model and size, since a folder takes no cells of another."""
    model = "" if arguments.model == MODEL else Path(arguments.model).name.lower()
    parts = ["paper", model, "quick" if arguments.quick else ""]
    return RESULTS / "-".join(part for part in parts if part)


def _run(arguments: argparse.Namespace, plan: Plan, store: CellStore, rates: tuple[float, ...]) -> None:
    seeds = arguments.seeds or ([0] if arguments.quick else [0, 1, 2])
    for key in arguments.sources:
        training, test = read_splits(arguments.data, DATASETS[key], plan.training, plan.test)
        store.texts[key] = digest_examples(training, test)
        for seed in seeds:  # refuses too few texts for the clients before the model is loaded
            dirichlet_split([example.label for example in training], plan.clients, plan.alpha, seed)
    store.collect(rates)  # refuses a folder of another run before any work is done
    lm = load(
        arguments.model,
        cache=cache_folder(arguments.cache),
        device=arguments.device,
        dtype=arguments.dtype,
        threads=arguments.threads,
        announce=log_progress,
    )
    machine, dtype = describe_machine(), str(lm.dtype).removeprefix("torch.")
    store.machine = {name: machine[name] for name in ("cpu", "amx", "cores", "torch")}
    store.machine |= {"device": _device_name(lm.device), "dtype": dtype, "threads": torch.get_num_threads()}
    store.loaded = {"fingerprint": lm.fingerprint, "dtype": dtype}
    store.collect(rates)  # refuses a folder of other weights
    chosen = arguments.methods or (QUICK_METHODS if arguments.quick else TITLES)
    pairs = list(product(seeds, arguments.sources))
    methods = [
        method
        for method in TITLES
        if method in chosen and _runs_on_any(method, pairs, requested=bool(arguments.methods)) and _fits(method, lm)
    ]
    for seed, key in pairs:
        CellRunner(lm, DATASETS[key], arguments.data, plan, store, seed, rates, log_progress).run(methods)


def _runs_on_any(method: str, pairs: Sequence[tuple[int, str]], *, requested: bool) -> bool:
    """Return whether a method runs under any of these seeds and data sets; log where it would, if it was requested by name."""
    runs = any(runs_on(method, seed, key) for seed, key in pairs)
    if requested and not runs:
        log_progress(f"{TITLES[method]}: left out, it runs on {_restriction(method)} alone")
    return runs


def _restriction(method: str) -> str:
    """Return the seeds and data sets of a method that does not run on all; an empty string for others."""
    seed = [f"seed {SWEEP_SEED}"] if method in ONE_SEED else []
    data = [" and ".join(DATASETS[key].title for key in RESTRICTED_DATASETS[method])] if method in RESTRICTED_DATASETS else []
    return " of ".join(seed + data)


def _method_help(method: str) -> str:
    """Return the name of a method with its title and its restriction, for `--help`."""
    title = "" if method == TITLES[method] else f": {TITLES[method]}"
    return method + title + (f" ({restriction} alone)" if (restriction := _restriction(method)) else "")


def _fits(method: str, lm: LanguageModel) -> bool:
    """Return whether a method's groups divide the model's channels; log it where they do not."""
    if method not in SETTINGS or SETTINGS[method].fits(lm.hidden_size):
        return True
    log_progress(
        f"{TITLES[method]}: left out, {SETTINGS[method].groups} groups do not divide the {lm.hidden_size} channels of {lm.name}"
    )
    return False


def _device_name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _plan(arguments: argparse.Namespace) -> Plan:
    """Return the plan, with the sizes that the command line gives."""
    base = QUICK if arguments.quick else Plan()
    changes = {size.name: value for size in fields(Plan) if (value := getattr(arguments, size.name)) is not None}
    return Plan(**(asdict(base) | changes))


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper", description=__doc__)
    parser.add_argument(
        "--data", type=Path, default=None, help="folder with {subj,agnews,emoc}.{train,test}.jsonl; not needed with --report"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=None,
        help="folder of cells, tables and plots; by default benchmarks/results/paper, followed by the name of another model and by quick",
    )
    parser.add_argument("--quick", action="store_true", help="a smaller run: one seed, fewer clients, texts, rounds and methods")
    parser.add_argument("--report", action="store_true", help="run nothing; write the tables and plots of the cells under --out")
    parser.add_argument("--model", default=MODEL, help="catalogue name, Hugging Face id or folder")
    parser.add_argument("--device", default="auto", help="as torch names it")
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"), help="number format of the forward pass"
    )
    parser.add_argument("--threads", type=int, default=None, help="CPU threads of torch")
    parser.add_argument("--cache", type=Path, default=None, help="folder of converted models")
    parser.add_argument("--sources", nargs="+", choices=sorted(DATASETS), default=list(DATASETS), help="data sets")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=list(TITLES),
        metavar="METHOD",
        default=None,
        help=f"{'; '.join(map(_method_help, TITLES))}. By default all; with --quick {', '.join(QUICK_METHODS)}",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=None, help="by default 0 1 2; with --quick 0")
    parser.add_argument("--lora-rates", nargs="+", type=float, default=None, help="learning rates of LoRA to try on seed 0")
    for name, value in asdict(Plan()).items():
        quick = asdict(QUICK)[name]
        text = f"{PLAN_HELP[name]}; by default {value}" + (f", with --quick {quick}" if quick != value else "")
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=None, help=text)
    arguments = parser.parse_args()
    if arguments.data is None and not arguments.report:
        parser.error("--data names the folder of the data sets")
    return arguments


if __name__ == "__main__":
    main()
