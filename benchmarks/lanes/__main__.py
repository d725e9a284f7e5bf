"""`python -m benchmarks.lanes`: forward passes in one thread and in two at once, and what follows for texts that wait."""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from benchmarks.datasets import SOURCES
from benchmarks.lanes.injection_overhead import compared
from benchmarks.lanes.queue_simulation import fitted, waits
from benchmarks.machine import machine
from benchmarks.tables import grid
from ifed.downloads import cache_folder
from ifed.modeling.forward import run_rows
from ifed.modeling.language_model import LanguageModel, Options
from ifed.modeling.loading import load
from ifed.modeling.prefix_cache import PrefixSharing
from ifed.modeling.prompts import PromptTemplate
from ifed.modeling.replicas import replicate
from ifed.modeling.scoring import scoring_rows
from services.inference.model import SHORT_PASS

LANES = 2
SOME = 72  # texts of which passes are made
SIMULATED = 40_000
Work = Callable[[], None]


def main() -> None:
    """Read the options, measure, tell."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lanes", description=__doc__)
    parser.add_argument("--texts", type=Path, required=True, help="JSONL with `text`, AG News for one")
    parser.add_argument("--model", default="smollm2-135m", help="catalogue name, Hugging Face id or folder")
    parser.add_argument("--cache", type=Path, default=None, help="folder of downloaded and converted models")
    parser.add_argument("--a-pass", type=int, nargs="+", default=[1, 3, 8], help="texts of a pass")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one measurement")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each row, taken in turn")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/lanes.json"))
    given = parser.parse_args()
    texts = [json.loads(line)["text"] for line in given.texts.read_text().splitlines()]
    measured, injected, sizes, budget = _passes(given, texts)
    queue = _queue(measured, sizes, budget)
    found = {"machine": machine(), "model": given.model, "passes": measured, "injected": injected, "queue": queue}
    given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(_table(measured), _injected_table(injected), _queue_table(queue), f"Figures in {given.out}.", sep="\n\n")


def _passes(given: argparse.Namespace, texts: Sequence[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[int], int]:
    """Passes by texts and traced or not, medians over the turns; what injection adds; the texts' tokens; the budget of a pass."""
    source, ways = SOURCES["agnews"], {}
    for traced in (False, True):
        options = Options(packed_weights=True, traced=traced)
        ways[traced] = load(given.model, cache=cache_folder(given.cache), device="cpu", threads=1, options=options, announce=_say)
    template = PromptTemplate.of(ways[True], source.template)
    labels = template.labels(source.labels)
    rows = [row for text in texts for row in scoring_rows(template.prompt(text), labels)]
    torch.set_num_threads(1)
    found = []
    for count in given.a_pass:
        turns: dict[bool, list[tuple[float, float, float]]] = {traced: [] for traced in ways}
        for _ in range(given.repeats):
            for traced, lm in ways.items():
                turns[traced].append(_turn(lm, rows, count, given.seconds))
        for traced, each in turns.items():
            alone, together, switches = map(statistics.median, zip(*each, strict=True))
            found.append({"texts": count, "traced": traced, "alone_ms": alone, "two_at_once_ms": together, "waits": switches})
            _say(
                f"{count} texts, traced {traced}: alone {alone:.1f} ms, two at once {together:.1f} ms, {switches:.0f} waits a pass"
            )
    injected = []
    for count in given.a_pass:
        _say(f"{count} texts, injected or not, {LANES} threads at once")
        injected += compared(replicate(ways[True], LANES), rows[:SOME], count, 2 * given.repeats * given.seconds)
    return found, injected, [len(row.ids) for row in rows], 2 * ways[True].token_budget


def _turn(lm: LanguageModel, rows: Sequence[Any], count: int, seconds: float) -> tuple[float, float, float]:
    """Milliseconds of a pass in one thread, in two threads at once, and how often a thread of the two waited in a pass; medians."""
    alone, _ = _threads([lm], rows, count, seconds)
    together, switches = _threads(replicate(lm, LANES), rows, count, seconds)
    return alone, together, switches


def _threads(models: Sequence[LanguageModel], rows: Sequence[Any], count: int, seconds: float) -> tuple[float, float]:
    took: list[float] = []
    switches: list[float] = []

    def run(lm: LanguageModel) -> None:
        torch.set_num_threads(1)
        prefixes, own = PrefixSharing(lm), list[float]()
        batches = [rows[first : first + count] for first in range(0, 64, count)]
        for batch in batches[:3]:
            run_rows(lm, batch, [None] * len(batch), token_budget=1 << 20, prefixes=prefixes)
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        ends = perf_counter() + seconds
        while (began := perf_counter()) < ends:
            batch = batches[len(own) % len(batches)]
            run_rows(lm, batch, [None] * len(batch), token_budget=1 << 20, prefixes=prefixes)
            own.append(1000 * (perf_counter() - began))
        took.append(statistics.median(own))
        switches.append((resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before) / len(own))

    threads = [threading.Thread(target=run, args=(lm,)) for lm in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statistics.mean(took), statistics.mean(switches)


def _queue(measured: Sequence[dict[str, Any]], sizes: Sequence[int], budget: int) -> list[dict[str, Any]]:
    """Waiting times at half of what full passes could do, by the tokens of a short pass; passes as long as measured two at once."""
    rows = [row for row in measured if row["traced"]]
    mean = statistics.mean(sizes)
    cost = fitted([row["texts"] * mean for row in rows], [row["two_at_once_ms"] for row in rows])
    single = rows[0]["alone_ms"]
    rate = LANES * 1000 / cost.of(budget) * (budget / mean) / 2
    found = []
    for short in (0, 96, 128, SHORT_PASS, 256, budget):
        ordered = waits(sizes, cost, rate=rate, lanes=LANES, budget=budget, short=short, texts=SIMULATED)
        p50, p95, p99 = (ordered[int(share * len(ordered))] for share in (0.50, 0.95, 0.99))
        found.append(
            {"short": short, "rate": rate, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "over_single": p99 / single} | asdict(cost)
        )
    return found


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        parts = "traced" if row["traced"] else "operator by operator"
        lines.append([row["texts"], parts, *(f"{row[name]:.0f}" for name in ("alone_ms", "two_at_once_ms", "waits"))])
    heads = ["texts a pass", "parts", "one thread alone, ms", "two threads at once, ms", "waits a pass"]
    return grid(heads, lines, ["parts"])


def _injected_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        told = [", ".join(f"{value:.3f}" for value in row[kind]) for kind in ("cpu", "clock")]
        lines.append([row["texts"], row["injected"], row["turns"], *told])
    heads = ["texts a pass", "injected", "turns", "CPU over the bare model's: quartiles", "by the clock: quartiles"]
    return grid(heads, lines, [heads[1], *heads[3:]])


def _queue_table(rows: Sequence[dict[str, Any]]) -> str:
    words = (
        f"Simulated: {rows[0]['rate']:.1f} texts a second, half of what full passes do, {LANES} lanes, passes of {rows[0]['fixed']:.0f} ms "
        f"and {rows[0]['a_token']:.2f} ms a token."
    )
    lines = [
        [row["short"], *(f"{row[name]:.0f}" for name in ("p50_ms", "p95_ms", "p99_ms")), f"{row['over_single']:.1f}"]
        for row in rows
    ]
    heads = ["tokens of a short pass", "p50 ms", "p95 ms", "p99 ms", "p99 over one text alone"]
    return f"{words}\n\n{grid(heads, lines)}"


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
