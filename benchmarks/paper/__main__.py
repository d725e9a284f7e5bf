"""`python -m benchmarks.paper --data FOLDER`: runs what has not run yet, then prints tables and draws figures."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.datasets import LEAST, SOURCES, BadTexts, digest_of, dirichlet_split, read_both
from benchmarks.machine import machine
from benchmarks.paper.methods import (
    DATA_SETS,
    ONE_SEED,
    QUICK,
    QUICK_METHODS,
    QUICK_RATES,
    RATES,
    SETTINGS,
    SWEEP_SEED,
    TITLES,
    Plan,
    runs_on,
)
from benchmarks.paper.plots import WORDS, draw
from benchmarks.paper.report import markdown, tables
from benchmarks.paper.runner import Work
from benchmarks.paper.store import OtherRun, Store
from benchmarks.tables import BadPage, around_figures, write_into
from ifed.downloads import cache_folder
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.loading import load

MODEL = "gemma-3-270m"
OF_A_RUN = {
    "clients": f"that share the training texts, {LEAST} each at the least",
    "alpha": "of the Dirichlet distribution of a label among the clients; small is uneven",
    "rounds": "of every method but those that the page gives more",
    "local_steps": "of a client in a round, likewise",
    "batch_size": "examples of a step",
    "training": "texts that the clients divide",
    "test": "texts on which accuracy is measured",
    "shots": "demonstrations of a few-shot prompt at the most",
    "few": "test texts for global against local coefficients",
    "few_seeds": "so many of the seeds measure those, the first",
    "lora_rank": "of each adapter",
}


def main() -> None:
    """Run every cell whose file is not there yet, one file a cell, so that a killed run goes on."""
    given = _arguments()
    plan = _plan(given)
    store = Store(given.out or _folder(given), plan, given.model)
    rates = tuple(given.lora_rates or (QUICK_RATES if given.quick else RATES))
    try:
        if given.page is not None:
            around_figures(given.page)  # a page without room for them is told before hours of work
        if not given.report:
            _run(given, plan, store, rates)
        found = store.collect(rates)
    except (OtherRun, BadTexts, BadPage) as refusal:
        sys.exit(str(refusal))
    except KeyboardInterrupt:
        _tell("stopped; the same command goes on with the cells that are missing")
        sys.exit(130)
    if not found["data"]:
        sys.exit(
            f"there are no cells under {store.folder}; "
            + (
                "a run makes them, and --out names the folder of another one"
                if given.report
                else "all that was asked for is left out"
            )
        )
    _show(given.page, store.folder, found)


def _show(page: Path | None, folder: Path, found: dict[str, Any]) -> None:
    """Tables to the terminal, the folder and the page; figures beside them."""
    for key, one in found["data"].items():
        if one["sweep"] and one["rate"] is None:
            _tell(
                f"{SOURCES[key].title}: FedAvg-LoRA has no accuracy and no seconds until all of its learning rates have run on seed {SWEEP_SEED}"
            )
    words, listed = markdown(found), {"tables": [one.json() for one in tables(found)]}
    (folder / "paper.json").write_text(json.dumps(found | listed, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(words)
    for path in draw(found, folder):
        _tell(f"drew {path.name}")
    if page is None:
        (folder / "paper.md").write_text(words + "\n", encoding="utf-8")
        return
    shown = [f"![{WORDS[path.stem]}]({path.name})" for path in draw(found, page.parent) if path.suffix == ".svg"]
    write_into(page, "\n\n".join([words, *shown]))


def _folder(given: argparse.Namespace) -> Path:
    """One for each model and size, since a folder takes no cells of another."""
    parts = [".paper", "" if given.model == MODEL else Path(given.model).name.lower(), "quick" if given.quick else ""]
    return Path("-".join(part for part in parts if part))


def _run(given: argparse.Namespace, plan: Plan, store: Store, rates: tuple[float, ...]) -> None:
    seeds = given.seeds or ([0] if given.quick else [0, 1, 2])
    for key in given.sources:
        training, test = read_both(given.data, SOURCES[key], plan.training, plan.test)
        store.texts[key] = digest_of(training, test)
        for seed in seeds:  # too few texts for the clients are told before the model is loaded
            dirichlet_split([example.label for example in training], plan.clients, plan.alpha, seed)
    store.collect(rates)  # a folder of another run is refused before work is put into it
    lm = load(
        given.model,
        cache=cache_folder(given.cache),
        device=given.device,
        dtype=given.dtype,
        threads=given.threads,
        announce=_tell,
    )
    told, dtype = machine(), str(lm.dtype).removeprefix("torch.")
    store.machine = {name: told[name] for name in ("cpu", "amx", "cores", "torch")}
    store.machine |= {"device": _name(lm.device), "dtype": dtype, "threads": torch.get_num_threads()}
    store.loaded = {"fingerprint": lm.fingerprint, "dtype": dtype}
    store.collect(rates)  # nor into one of other weights
    chosen = given.methods or (QUICK_METHODS if given.quick else TITLES)
    pairs = list(product(seeds, given.sources))
    methods = [one for one in TITLES if one in chosen and _runs(one, pairs, asked=bool(given.methods)) and _fits(one, lm)]
    for seed, key in pairs:
        Work(lm, SOURCES[key], given.data, plan, store, seed, rates, _tell).run(methods)


def _runs(method: str, pairs: Sequence[tuple[int, str]], *, asked: bool) -> bool:
    """Whether a method runs under any of these seeds and data sets; who asked for it is told where it would."""
    runs = any(runs_on(method, seed, key) for seed, key in pairs)
    if asked and not runs:
        _tell(f"{TITLES[method]}: left out, it runs on {_limits(method)} alone")
    return runs


def _limits(method: str) -> str:
    """The seeds and the data sets of a method that does not run on all; of others nothing."""
    seed = [f"seed {SWEEP_SEED}"] if method in ONE_SEED else []
    data = [" and ".join(SOURCES[key].title for key in DATA_SETS[method])] if method in DATA_SETS else []
    return " of ".join(seed + data)


def _meaning(method: str) -> str:
    """What a method is, for the help."""
    title = "" if method == TITLES[method] else f": {TITLES[method]}"
    return method + title + (f" ({limits} alone)" if (limits := _limits(method)) else "")


def _fits(method: str, lm: LanguageModel) -> bool:
    """Whether a model can have this method; it is told where not."""
    if method not in SETTINGS or SETTINGS[method].fits(lm.hidden_size):
        return True
    _tell(f"{TITLES[method]}: left out, {SETTINGS[method].groups} groups do not divide the {lm.hidden_size} channels of {lm.name}")
    return False


def _name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _plan(given: argparse.Namespace) -> Plan:
    """The plan with whatever was said of it."""
    base = QUICK if given.quick else Plan()
    said = {one.name: value for one in fields(Plan) if (value := getattr(given, one.name)) is not None}
    return Plan(**(asdict(base) | said))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper", description=__doc__)
    parser.add_argument(
        "--data", type=Path, default=None, help="folder with {subj,agnews,emoc}.{train,test}.jsonl; only --report needs none"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=None,
        help="folder of cells, tables and figures; .paper, with the name of another model and with quick behind it",
    )
    parser.add_argument("--quick", action="store_true", help="smaller: one seed, fewer clients, texts, rounds and rows")
    parser.add_argument("--report", action="store_true", help="run nothing, print and draw what is there under --out")
    parser.add_argument(
        "--page",
        type=Path,
        default=None,
        help="takes the tables between its marks in place of paper.md; the figures go beside it too",
    )
    parser.add_argument("--model", default=MODEL, help="catalogue name, Hugging Face id or folder")
    parser.add_argument("--device", default="auto", help="as torch names it")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"), help="of the forward pass")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads of torch")
    parser.add_argument("--cache", type=Path, default=None, help="folder of converted models")
    parser.add_argument("--sources", nargs="+", choices=sorted(SOURCES), default=list(SOURCES), help="data sets")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=list(TITLES),
        metavar="METHOD",
        default=None,
        help=f"{'; '.join(map(_meaning, TITLES))}. All unless told; when quick {', '.join(QUICK_METHODS)}",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=None, help="0 1 2, or 0 when quick")
    parser.add_argument("--lora-rates", nargs="+", type=float, default=None, help="LoRA's learning rates, tried on seed 0")
    for name, value in asdict(Plan()).items():
        quick = asdict(QUICK)[name]
        words = f"{OF_A_RUN[name]}; {value} unless told" + (f", {quick} when quick" if quick != value else "")
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=None, help=words)
    given = parser.parse_args()
    if given.data is None and not given.report:
        parser.error("--data names the folder of the data sets")
    return given


def _tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
