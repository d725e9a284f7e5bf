"""Measure several tasks on one text, in one request or one by one, in one lane of the service: `python -m benchmarks.tasks`.

The tasks inject at the last token and read a label head, with random tensors of the size of real ones. Their templates differ after the text.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

import numpy as np

from benchmarks.machine import describe_machine
from benchmarks.output import RESULTS, log_progress, measure_or_report
from benchmarks.serving.random_adapters import GROUPS
from benchmarks.tables import markdown_table
from ifed.downloads import cache_folder
from ifed.messages.bodies import AdapterBody
from ifed.messages.rounds import AdapterMeta
from ifed.messages.tasks import Layout, ModelIdentity
from ifed.modeling.language_model import LanguageModel, Options
from ifed.modeling.loading import load
from ifed.tensors.regression import LabelHead
from ifed.tensors.values import Coefficients, ContextVector, Float32
from services.inference.model import Item, LoadedAdapter, PreparedText, Prompts, Scorer

TEXT = (
    "Oil prices rose on Tuesday after producers agreed to extend their cuts into the next year, while shares of airlines fell in early "
    "trading and the euro held its ground against the dollar ahead of a meeting of the central bank."
)
ENDINGS = ("Topic:", "Sentiment:", "Is it about business?", "Region:", "Author:", "Urgency:", "Style:", "Reader:")
LABELS = ("first", "second", "third", "fourth")
SHARED, BATCHED, ALONE = "one request, the text shared", "one request, nothing shared", "one request for each task"


def main() -> None:
    """Measure, or read stored results; print the table and write it."""
    measure_or_report("tasks", _parse_arguments(), _measure, markdown)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tasks", description=__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="catalogue name, Hugging Face id or folder")
    parser.add_argument("--cache", type=Path, default=None, help="folder of downloaded and converted models")
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 8, 64], help="numbers of tasks on one text")
    parser.add_argument("--turns", type=int, nargs="+", default=[9, 5, 3], help="turns of the three ways, for each number of tasks")
    parser.add_argument("--out", type=Path, default=RESULTS / "tasks.json", help="file of the results; tables go beside it")
    parser.add_argument("--report", action="store_true", help="measure nothing; write the tables of the results in --out")
    options = parser.parse_args()
    if len(options.turns) != len(options.tasks):
        parser.error("--turns takes as many numbers as --tasks")
    return options


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    chosen = Options(packed_weights=True, traced=True)
    lm = load(options.model, cache=cache_folder(options.cache), device="cpu", threads=1, options=chosen, announce=log_progress)
    rows = measure(lm, options.tasks, options.turns)
    return {"machine": describe_machine(), "model": options.model, "dtype": str(lm.dtype), "rows": rows}


def measure(lm: LanguageModel, counts: Sequence[int], turns: Sequence[int]) -> list[dict[str, Any]]:
    """Return for each number of tasks and each way the medians over turns in which the ways alternate."""
    sharing = Scorer(lm)
    apart = Scorer(replace(lm, options=replace(lm.options, share_prefix=False)))
    rows = []
    for count, repeats in zip(counts, turns, strict=True):
        adapters = [sharing.load_adapter(_adapter(lm.identity, seed)) for seed in range(count)]
        ways: dict[str, Callable[[], list[Float32]]] = {
            ALONE: lambda adapters=adapters: [apart.score(_items(apart, [one]))[0] for one in adapters],  # type: ignore[misc]  # a lambda's default
            BATCHED: lambda adapters=adapters: apart.score(_items(apart, adapters)),  # type: ignore[misc]
            SHARED: lambda adapters=adapters: sharing.score(_items(sharing, adapters)),  # type: ignore[misc]
        }
        ways[SHARED]()  # a first pass of its size is slower
        times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        differences = dict.fromkeys(ways, 0.0)
        for _ in range(repeats):
            expected: Sequence[Float32] = ()
            for way, run in ways.items():
                cpu, wall = thread_time(), perf_counter()
                scores = run()
                times[way].append((1000 * (thread_time() - cpu), 1000 * (perf_counter() - wall)))
                expected = expected or scores
                differences[way] = max(differences[way], float(np.abs(np.exp(scores) - np.exp(expected)).max()))
            log_progress(f"{count} tasks: " + ", ".join(f"{way} {measured[-1][0]:.0f} ms" for way, measured in times.items()))
        for way, measured in times.items():
            cpu_ms, wall_ms = (round(statistics.median(values), 1) for values in zip(*measured, strict=True))
            rows.append(
                {
                    "tasks": count,
                    "way": way,
                    "turns": repeats,
                    "cpu_ms": cpu_ms,
                    "wall_ms": wall_ms,
                    "largest_difference": differences[way],
                }
            )
    return rows


def markdown(results: Mapping[str, Any]) -> str:
    """Return the table: a line for each number of tasks and each way."""
    alone = {row["tasks"]: row["cpu_ms"] for row in results["rows"] if row["way"] == ALONE}
    lines = [
        [
            row["tasks"],
            row["way"],
            row["turns"],
            f"{row['cpu_ms']:.0f}",
            f"{row['wall_ms']:.0f}",
            f"{row['cpu_ms'] / row['tasks']:.1f}",
            f"{alone[row['tasks']] / row['cpu_ms']:.1f}",
            f"{row['largest_difference']:.0e}",
        ]
        for row in results["rows"]
    ]
    headings = (
        "tasks on one text", "asked in", "turns", "CPU ms", "wall ms", "CPU ms a task", "times less CPU than one by one", "largest difference of a probability",
    )  # fmt: skip
    return markdown_table(headings, lines, ["asked in"])


def _items(scorer: Scorer, adapters: Sequence[LoadedAdapter]) -> list[Item]:
    prompts: Prompts = {}
    prepared = [scorer.prepare(adapter, TEXT, truncate=True, prompts=prompts) for adapter in adapters]
    return [text.item for text in prepared if isinstance(text, PreparedText)]


def _adapter(identity: ModelIdentity, seed: int) -> AdapterBody:
    """Return a random adapter near the base model, for the upper half of the layers."""
    generator = np.random.default_rng(seed)
    layers = list(range(identity.num_layers // 2, identity.num_layers))
    layout = Layout(layers=layers, hidden_size=identity.hidden_size, groups=math.gcd(GROUPS, identity.hidden_size))
    coefficients = generator.normal(scale=0.05, size=layout.coefficients_shape)
    coefficients[:, :, 1] += 1.0
    meta = AdapterMeta(
        task=f"task-{seed}",
        version=1,
        labels=list(LABELS),
        template=f"Text: {{text}}\n{ENDINGS[seed % len(ENDINGS)]}",
        identity=identity,
        layout=layout,
        injection="last_token",
        reading="head",
        created_at=datetime.now(UTC),
    )
    head = LabelHead(
        generator.normal(scale=0.01, size=(len(LABELS), identity.hidden_size)).astype(np.float32), np.zeros(len(LABELS), np.float32)
    )
    context = ContextVector(generator.normal(scale=0.5, size=layout.context_shape))
    return AdapterBody(context, Coefficients(coefficients), meta, head=head)


if __name__ == "__main__":
    main()
