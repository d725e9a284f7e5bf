"""Run the comparison, cell by cell: `python -m benchmarks.paper --data FOLDER`; print its tables and draw its plots.

On one's own texts: `python -m benchmarks.paper --source FOLDER --template "Review: {text}\nSentiment:" --labels positive,negative`.
"""

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

from benchmarks.datasets import (
    DATASETS,
    MIN_CLIENT_EXAMPLES,
    Dataset,
    InvalidDataset,
    count_examples,
    digest_examples,
    dirichlet_split,
    own_dataset,
    read_examples,
    read_splits,
)
from benchmarks.machine import describe_machine
from benchmarks.output import RESULTS, log_progress, write_json, write_tables
from benchmarks.paper.encoder import NoEncoder, SentenceEncoder
from benchmarks.paper.methods import (
    DEFAULT_METHODS,
    ONE_SEED,
    QUICK,
    QUICK_METHODS,
    QUICK_RATES,
    RATES,
    RESTRICTED_DATASETS,
    SETTINGS,
    SWEEP_SEED,
    TASKS,
    TITLES,
    TUNED,
    Plan,
    is_default,
    is_known,
    runs_on,
)
from benchmarks.paper.plots import DESCRIPTIONS, draw
from benchmarks.paper.report import markdown, tables
from benchmarks.paper.runner import CellRunner
from benchmarks.paper.store import CellMismatch, CellStore
from benchmarks.paper.texts import DEVELOPMENT_TEXTS
from ifed.downloads import cache_folder
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.loading import load

MODEL = "gemma-3-270m"
PLAN_HELP = {
    "clients": f"number of clients, of at least {MIN_CLIENT_EXAMPLES} examples each",
    "alpha": "concentration of the Dirichlet distribution of a label among the clients; small is uneven",
    "rounds": "rounds of LoRA and the first release, but for methods that have more by definition; another number than that is also the most "
    "that ours has, which otherwise ends by itself",
    "local_steps": "local steps of a client in a round, likewise; ours has the product's default",
    "batch_size": "examples of a local step, likewise",
    "training": "training examples that are divided among the clients",
    "test": "test examples on which accuracy is measured: the first half are texts A, the others texts B",
    "shots": "largest number of demonstrations in a few-shot prompt",
    "few": "test examples on which global and local coefficients are compared",
    "few_seeds": "number of seeds, the first ones, for which they are compared",
    "lora_rank": "rank of each adapter",
}


def main() -> None:
    """Run every missing cell and report on all; each cell is a file, so an interrupted run resumes."""
    arguments = _parse_arguments()
    rates = tuple(arguments.lora_rates or (QUICK_RATES if arguments.quick else RATES))
    try:
        datasets = _datasets(arguments)
        folder = arguments.out or _default_folder(arguments)
        stored = _stored_run(folder) if arguments.report else None
        plan, model = stored or (_plan(arguments, datasets), arguments.model)
        store = CellStore(folder, plan, model)
        if not arguments.report:
            _run(arguments, datasets, plan, store, rates)
        results = store.collect(rates) | {"development": arguments.development}
    except (CellMismatch, InvalidDataset, NoEncoder) as refusal:
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
    for data in results["data"].values():
        if any(cell["method"] == TUNED for cell in data["sweep"]) and data["rate"][TUNED] is None:
            log_progress(
                f"{data['title']}: FedAvg-LoRA has no accuracy and no seconds until all of its learning rates have run on seed {SWEEP_SEED}"
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
    development = ["--development"] if arguments.development else []
    command = " ".join(["python -m benchmarks.paper --report", *out, *rates, *development])
    write_tables(folder / "tables.md", "\n\n".join([text, *images]), command=command)


def _default_folder(arguments: argparse.Namespace) -> Path:
    """Return a folder for each source, model and size, since a folder takes no cells of another."""
    source = "" if arguments.source is None else arguments.source.resolve().name.lower()
    model = "" if arguments.model == MODEL else Path(arguments.model).name.lower()
    size = "" if arguments.training in (None, Plan().training) or arguments.source else str(arguments.training)
    parts = ["paper", source, model, size, "quick" if arguments.quick else "", "development" if arguments.development else ""]
    return RESULTS / "-".join(part for part in parts if part)


def _stored_run(folder: Path) -> tuple[Plan, str] | None:
    """Return the plan and the model of the newest cell of a folder; None without cells other than those of the first release."""
    paths = sorted(folder.glob("cells/*/*.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in paths:
        cell = json.loads(path.read_text(encoding="utf-8"))
        if "readings" in cell:
            return Plan(**cell["plan"]), cell["model"]
    return None


def _datasets(arguments: argparse.Namespace) -> list[Dataset]:
    """Return the data sets of the run: one's own, or those of the paper."""
    if arguments.source is None:
        return [DATASETS[key] for key in arguments.sources]
    if arguments.report:  # its title is in the cells
        return []
    return [
        own_dataset(
            arguments.source, arguments.template.replace("\\n", "\n"), [label.strip() for label in arguments.labels.split(",")]
        )
    ]


def _run(
    arguments: argparse.Namespace, datasets: Sequence[Dataset], plan: Plan, store: CellStore, rates: tuple[float, ...]
) -> None:
    seeds = arguments.seeds or ([0] if arguments.quick else [0, 1, 2])
    data = arguments.source or arguments.data
    if plan.first_texts == 0:
        raise InvalidDataset(f"{plan.test} test examples cannot be divided into texts A and B; take two or more")
    for dataset in datasets:
        training, test = read_splits(data, dataset, plan.training, plan.test)
        first = test[: plan.first_texts]
        if arguments.development:
            available = count_examples(data, dataset, "train")
            test = read_examples(data, dataset, "train", min(available, plan.training + DEVELOPMENT_TEXTS))[plan.training :]
            if not test:
                raise InvalidDataset(
                    f"{dataset.path(data, 'train')} has {available} examples, all of which clients train on; --development needs more, "
                    "or a smaller --training"
                )
        store.texts[dataset.key] = digest_examples(training, test), digest_examples(training, first)
        store.titles[dataset.key] = dataset.title
        for seed in seeds:  # refuses too few texts for the clients before the model is loaded
            dirichlet_split([example.label for example in training], plan.clients, plan.alpha, seed)
    store.collect(rates)  # refuses a folder of another run before any work is done
    chosen = arguments.methods or (QUICK_METHODS if arguments.quick else DEFAULT_METHODS)
    encoder = _encoder(arguments, chosen)
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
    pairs = list(product(seeds, datasets))
    keys = [(seed, dataset.key) for seed, dataset in pairs]
    methods = [
        method
        for method in TITLES
        if method in chosen and _runs_on_any(method, keys, requested=bool(arguments.methods)) and _fits(method, lm)
    ]
    for seed, dataset in pairs:
        runner = CellRunner(
            lm,
            dataset,
            data,
            plan,
            store,
            seed,
            rates,
            log_progress,
            encoder=encoder,
            development=arguments.development,
            renew=arguments.renew,
        )
        runner.run(methods)


def _encoder(arguments: argparse.Namespace, chosen: Sequence[str]) -> SentenceEncoder | None:
    """Return the encoder of sentences, if its method is chosen; log it where none is named."""
    if "embedding" not in chosen:
        return None
    if arguments.embedding_model is None:
        log_progress(f"{TITLES['embedding']}: left out, --embedding-model names no folder of a model")
        return None
    return SentenceEncoder.load(arguments.embedding_model)


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
    """Return whether a method's groups divide the model's channels, and it is not another by another name; log it where not."""
    setting = SETTINGS.get(method) or TASKS.get(method)
    if not is_known(method) or is_default(method):
        reason = "that is the default" if is_known(method) else "updates have no such number format"
        log_progress(f"{TITLES[method]}: left out, {reason}")
        return False
    if setting is None or setting.fits(lm.hidden_size):
        return True
    log_progress(f"{TITLES[method]}: left out, {setting.groups} groups do not divide the {lm.hidden_size} channels of {lm.name}")
    return False


def _device_name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _plan(arguments: argparse.Namespace, datasets: Sequence[Dataset]) -> Plan:
    """Return the plan, with the sizes that the command line gives; of one's own texts as many as there are, up to the default."""
    base = QUICK if arguments.quick else Plan()
    changes = {size.name: value for size in fields(Plan) if (value := getattr(arguments, size.name)) is not None}
    if arguments.source is not None and not arguments.report:
        (dataset,) = datasets
        for name, split in (("training", "train"), ("test", "test")):
            available = count_examples(arguments.source, dataset, split)
            changes.setdefault(name, min(available, getattr(base, name)))
    return Plan(**(asdict(base) | changes))


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper", description=__doc__)
    parser.add_argument(
        "--data", type=Path, default=None, help="folder with {subj,agnews,emoc}.{train,test}.jsonl; not needed with --report"
    )
    parser.add_argument(
        "--source",
        type=Path,
        default=None,
        help='folder of one\'s own texts in place of --data: train.jsonl and test.jsonl, each line {"text": …, "label": …}, shuffled',
    )
    parser.add_argument("--template", default=None, help="prompt of --source, with {text} exactly once; \\n is a line break")
    parser.add_argument("--labels", default=None, help="labels of --source, with commas between them")
    parser.add_argument(
        "--embedding-model",
        type=Path,
        default=None,
        help="folder of a sentence-embedding model as transformers loads it, whose tokens are averaged; without it that method is left out",
    )
    parser.add_argument(
        "--development",
        action="store_true",
        help=f"evaluate on {DEVELOPMENT_TEXTS} training texts that no client has, in place of the test texts, in a folder of its own: for choices",
    )
    parser.add_argument(
        "--renew", action="store_true", help="run cells of the first release again, which were evaluated on texts A alone"
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
        help=f"{'; '.join(map(_method_help, TITLES))}. By default {', '.join(DEFAULT_METHODS)}; with --quick {', '.join(QUICK_METHODS)}",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=None, help="by default 0 1 2; with --quick 0")
    parser.add_argument(
        "--lora-rates",
        nargs="+",
        type=float,
        default=None,
        help="learning rates of LoRA to try on seed 0; the best on the development texts is used on other seeds and with more steps. A single one is not tried",
    )
    for name, value in asdict(Plan()).items():
        quick = asdict(QUICK)[name]
        text = f"{PLAN_HELP[name]}; by default {value}" + (f", with --quick {quick}" if quick != value else "")
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=None, help=text)
    arguments = parser.parse_args()
    if arguments.source is not None and not arguments.report and (arguments.template is None or arguments.labels is None):
        parser.error('--source needs --template, such as "Review: {text}\\nSentiment:", and --labels, such as positive,negative')
    if arguments.data is None and arguments.source is None and not arguments.report:
        parser.error("--data names the folder of the data sets, --source that of one's own")
    return arguments


if __name__ == "__main__":
    main()
