"""`python -m benchmarks.convergence --data FOLDER --out FOLDER`: runs what has not run yet, then prints tables and draws plots."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

import torch

from benchmarks.convergence.plots import draw
from benchmarks.convergence.report import collect, page, tables
from benchmarks.convergence.runner import run
from benchmarks.convergence.settings import Cell, Plan, cells
from benchmarks.datasets import SOURCES, BadTexts, Source, dirichlet_split, read_both
from benchmarks.federated.federation import Federation
from benchmarks.tables import write_into
from ifed.downloads import cache_folder
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.loading import load
from ifed.modeling.prompts import Example


def main() -> None:
    """Run every cell whose file is not there yet, one file a cell, so that a killed run goes on."""
    given = _arguments()
    plan = Plan(**{name: getattr(given, name) for name in asdict(Plan())})
    chosen = [cell for cell in cells() if given.cells is None or cell.name in given.cells]
    if unknown := set(given.cells or ()) - {cell.name for cell in chosen}:
        sys.exit(f"no such cells: {', '.join(sorted(unknown))}; there are {', '.join(cell.name for cell in cells())}")
    todo = {key: [cell for cell in chosen if not _file(given.out, key, cell).exists()] for key in given.sources}
    if not given.report and any(todo.values()):
        if given.threads:
            torch.set_num_threads(given.threads)
        try:
            texts = {key: read_both(given.data, SOURCES[key], plan.training, plan.test) for key, waiting in todo.items() if waiting}
        except BadTexts as refusal:
            sys.exit(str(refusal))
        lm = load(given.model, cache=cache_folder(given.cache), device=given.device, announce=_tell)
        for key, (training, test) in texts.items():
            for cell, federation in _federations(lm, SOURCES[key], training, test, todo[key], plan):
                _run(lm, federation, cell, plan, _file(given.out, key, cell))
    found = collect(given.out, plan)
    (given.out / "convergence.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(tables(found))
    for path in draw(found, given.out):
        _tell(f"drew {path.name}")
    if given.page is not None:
        write_into(given.page, page(found, given.out.name))


def _federations(
    lm: LanguageModel, source: Source, training: list[Example], test: list[Example], waiting: list[Cell], plan: Plan
) -> Iterator[tuple[Cell, Federation]]:
    """Each cell with its clients; cells of the same layers share them, since what their lower layers give is the same."""
    split = dirichlet_split([example.label for example in training], plan.clients, plan.alpha, plan.seed)
    parts = [[training[index] for index in part] for part in split]
    for layers, group in groupby(sorted(waiting, key=lambda cell: str(cell.layers) != "upper_half"), key=lambda cell: cell.layers):
        _tell(f"{source.title}: context vectors for {layers}; clients have {', '.join(str(len(part)) for part in parts)} examples")
        federation = Federation(lm, source, parts, test, layers)
        for cell in group:
            yield cell, federation


def _run(lm: LanguageModel, federation: Federation, cell: Cell, plan: Plan, path: Path) -> None:
    if cell.groups is not None and lm.hidden_size % cell.groups:
        _tell(f"{cell.name} left out: {cell.groups} groups do not divide the hidden size {lm.hidden_size}")
        return
    found = run(federation, cell, plan, lambda words: _tell(f"{federation.source.title}: {words}"))
    found |= {"data": federation.source.key, "model": lm.name, "plan": asdict(plan)}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.rename(path)


def _file(folder: Path, key: str, cell: Cell) -> Path:
    return folder / "cells" / key / f"{cell.name}.json"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convergence", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with {subj,agnews,emoc}.{train,test}.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder of one JSON file a cell, the tables' JSON and the plots")
    parser.add_argument("--page", type=Path, default=None, help="takes tables and figures between its marks; lies beside --out")
    parser.add_argument("--model", default="gemma-3-270m", help="catalogue name, Hugging Face id or folder")
    parser.add_argument("--sources", nargs="+", choices=sorted(SOURCES), default=list(SOURCES), help="data sets")
    parser.add_argument("--cells", nargs="+", default=None, help="names of settings; all unless told")
    parser.add_argument("--report", action="store_true", help="run nothing, print and draw what is there")
    parser.add_argument("--cache", type=Path, default=None, help="folder of converted models")
    parser.add_argument("--device", default="auto", help="as torch names it")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads of torch")
    for name, value in asdict(Plan()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"{value} unless told")
    return parser.parse_args()


def _tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
