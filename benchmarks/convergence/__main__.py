"""Run the study of calibration under skewed labels: `python -m benchmarks.convergence --data FOLDER`; print its tables and draw its plots."""

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
from benchmarks.convergence.report import collect, markdown
from benchmarks.convergence.runner import run_setting
from benchmarks.convergence.settings import Plan, Setting, all_settings
from benchmarks.datasets import DATASETS, Dataset, InvalidDataset, dirichlet_split, read_splits
from benchmarks.federated.federation import Federation
from benchmarks.output import RESULTS, log_progress, write_json, write_tables
from ifed.downloads import cache_folder
from ifed.messages.texts import LabelledText
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.loading import load


def main() -> None:
    """Run every missing cell and report on all; each cell is a file, so an interrupted run resumes."""
    arguments = _parse_arguments()
    plan = Plan(**{name: getattr(arguments, name) for name in asdict(Plan())})
    chosen = [setting for setting in all_settings() if arguments.cells is None or setting.name in arguments.cells]
    if unknown := set(arguments.cells or ()) - {setting.name for setting in chosen}:
        names = ", ".join(setting.name for setting in all_settings())
        sys.exit(f"no such cells: {', '.join(sorted(unknown))}; there are {names}")
    if not arguments.report:
        _run_missing(arguments, chosen, plan)
    results = collect(arguments.out, plan)
    text = markdown(results)
    print(text)
    write_json(arguments.out / "convergence.json", results)
    out = "" if arguments.out == RESULTS / "convergence" else f" --out {arguments.out}"
    write_tables(arguments.out / "tables.md", text, command=f"python -m benchmarks.convergence --report{out}")
    for path in draw(results, arguments.out):
        log_progress(f"drew {path.name}")


def _run_missing(arguments: argparse.Namespace, chosen: list[Setting], plan: Plan) -> None:
    missing = {
        key: [setting for setting in chosen if not _cell_path(arguments.out, key, setting).exists()] for key in arguments.sources
    }
    if not any(missing.values()):
        return
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    try:
        texts = {
            key: read_splits(arguments.data, DATASETS[key], plan.training, plan.test)
            for key, settings in missing.items()
            if settings
        }
    except InvalidDataset as refusal:
        sys.exit(str(refusal))
    lm = load(arguments.model, cache=cache_folder(arguments.cache), device=arguments.device, announce=log_progress)
    for key, (training, test) in texts.items():
        for setting, federation in _federations(lm, DATASETS[key], training, test, missing[key], plan):
            _run_cell(lm, federation, setting, plan, _cell_path(arguments.out, key, setting))


def _federations(
    lm: LanguageModel,
    dataset: Dataset,
    training: list[LabelledText[int]],
    test: list[LabelledText[int]],
    settings: list[Setting],
    plan: Plan,
) -> Iterator[tuple[Setting, Federation]]:
    """Yield each setting with its federation; settings of the same layers share one, with its cached activations."""
    split = dirichlet_split([example.label for example in training], plan.clients, plan.alpha, plan.seed)
    parts = [[training[index] for index in part] for part in split]
    sizes = ", ".join(str(len(part)) for part in parts)
    ordered = sorted(settings, key=lambda setting: str(setting.layers) != "upper_half")
    for layers, group in groupby(ordered, key=lambda setting: setting.layers):
        log_progress(f"{dataset.title}: context vectors for {layers}; clients have {sizes} examples")
        federation = Federation(lm, dataset, parts, test, layers)
        for setting in group:
            yield setting, federation


def _run_cell(lm: LanguageModel, federation: Federation, setting: Setting, plan: Plan, path: Path) -> None:
    if setting.groups is not None and lm.hidden_size % setting.groups:
        log_progress(f"{setting.name} left out: {setting.groups} groups do not divide the hidden size {lm.hidden_size}")
        return
    result = run_setting(federation, setting, plan, lambda message: log_progress(f"{federation.dataset.title}: {message}"))
    result |= {"data": federation.dataset.key, "model": lm.name, "plan": asdict(plan)}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.rename(path)


def _cell_path(folder: Path, key: str, setting: Setting) -> Path:
    return folder / "cells" / key / f"{setting.name}.json"


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convergence", description=__doc__)
    parser.add_argument(
        "--data", type=Path, default=None, help="folder with {subj,agnews,emoc}.{train,test}.jsonl; not needed with --report"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "convergence", help="folder of cells, tables and plots")
    parser.add_argument("--model", default="gemma-3-270m", help="catalogue name, Hugging Face id or folder")
    parser.add_argument("--sources", nargs="+", choices=sorted(DATASETS), default=list(DATASETS), help="data sets")
    parser.add_argument("--cells", nargs="+", default=None, help="names of settings; by default all")
    parser.add_argument("--report", action="store_true", help="run nothing; write the tables and plots of the cells under --out")
    parser.add_argument("--cache", type=Path, default=None, help="folder of converted models")
    parser.add_argument("--device", default="auto", help="as torch names it")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads of torch")
    for name, value in asdict(Plan()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"by default {value}")
    arguments = parser.parse_args()
    if arguments.data is None and not arguments.report:
        parser.error("--data names the folder of the data sets")
    return arguments


if __name__ == "__main__":
    main()
