"""Measure forward passes in one thread and in two at once, and simulate the queue before them: `python -m benchmarks.lanes`."""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from benchmarks.datasets import DATASETS
from benchmarks.lanes.injection_overhead import measure_overhead
from benchmarks.lanes.queue_simulation import fit_cost, simulate_waits
from benchmarks.machine import describe_machine
from benchmarks.output import RESULTS, log_progress, measure_or_report
from benchmarks.tables import markdown_table
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
OVERHEAD_TEXTS = 72  # texts on which the overhead of injection is measured
SIMULATED_TEXTS = 40_000


def main() -> None:
    """Measure, or read stored results; print the tables and write them."""
    measure_or_report("lanes", _parse_arguments(), _measure, markdown)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lanes", description=__doc__)
    parser.add_argument("--texts", type=Path, help="JSONL with `text`, for example AG News; not needed with --report")
    parser.add_argument("--model", default="smollm2-135m", help="catalogue name, Hugging Face id or folder")
    parser.add_argument("--cache", type=Path, default=None, help="folder of downloaded and converted models")
    parser.add_argument("--a-pass", type=int, nargs="+", default=[1, 3, 8], help="numbers of texts in a pass")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one measurement")
    parser.add_argument("--repeats", type=int, default=3, help="alternating measurements of each row")
    parser.add_argument("--out", type=Path, default=RESULTS / "lanes.json", help="file of the results; tables go beside it")
    parser.add_argument("--report", action="store_true", help="measure nothing; write the tables of the results in --out")
    options = parser.parse_args()
    if not options.report and options.texts is None:
        parser.error("--texts names a file of texts")
    return options


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    texts = [json.loads(line)["text"] for line in options.texts.read_text().splitlines()]
    passes, overheads, sizes, budget = _measure_passes(options, texts)
    queue = _simulate_queue(passes, sizes, budget)
    return {"machine": describe_machine(), "model": options.model, "passes": passes, "injected": overheads, "queue": queue}


def markdown(results: Mapping[str, Any]) -> str:
    """Return the tables of passes, of the overhead of injection, and of the simulated queue."""
    return "\n\n".join([_pass_table(results["passes"]), _overhead_table(results["injected"]), _queue_table(results["queue"])])


def _measure_passes(
    options: argparse.Namespace, texts: Sequence[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[int], int]:
    """Return the passes by number of texts, traced or not; the overhead of injection; the texts' numbers of tokens; a pass's token budget."""
    dataset, models = DATASETS["agnews"], {}
    for traced in (False, True):
        chosen = Options(packed_weights=True, traced=traced)
        cache = cache_folder(options.cache)
        models[traced] = load(options.model, cache=cache, device="cpu", threads=1, options=chosen, announce=log_progress)
    template = PromptTemplate.of(models[True], dataset.template)
    labels = template.labels(dataset.labels)
    rows = [row for text in texts for row in scoring_rows(template.prompt(text), labels)]
    torch.set_num_threads(1)
    passes = []
    for count in options.a_pass:
        turns: dict[bool, list[tuple[float, float, float]]] = {traced: [] for traced in models}
        for _ in range(options.repeats):
            for traced, lm in models.items():
                turns[traced].append(_measure_turn(lm, rows, count, options.seconds))
        for traced, measured in turns.items():
            alone, together, switches = map(statistics.median, zip(*measured, strict=True))
            passes.append({"texts": count, "traced": traced, "alone_ms": alone, "two_at_once_ms": together, "waits": switches})
            log_progress(
                f"{count} texts, traced {traced}: alone {alone:.1f} ms, two at once {together:.1f} ms, {switches:.0f} waits a pass"
            )
    overheads = []
    for count in options.a_pass:
        log_progress(f"{count} texts, injected or not, {LANES} threads at once")
        overheads += measure_overhead(
            replicate(models[True], LANES), rows[:OVERHEAD_TEXTS], count, 2 * options.repeats * options.seconds
        )
    return passes, overheads, [len(row.ids) for row in rows], 2 * models[True].token_budget


def _measure_turn(lm: LanguageModel, rows: Sequence[Any], count: int, seconds: float) -> tuple[float, float, float]:
    """Return the milliseconds of a pass in one thread and in two threads at once, and a thread's waits in a pass of the latter; medians."""
    alone, _ = _run_threads([lm], rows, count, seconds)
    together, switches = _run_threads(replicate(lm, LANES), rows, count, seconds)
    return alone, together, switches


def _run_threads(models: Sequence[LanguageModel], rows: Sequence[Any], count: int, seconds: float) -> tuple[float, float]:
    milliseconds: list[float] = []
    switches: list[float] = []

    def run(lm: LanguageModel) -> None:
        torch.set_num_threads(1)
        prefixes, durations = PrefixSharing(lm), list[float]()
        batches = [rows[first : first + count] for first in range(0, 64, count)]
        for batch in batches[:3]:
            run_rows(lm, batch, [None] * len(batch), token_budget=1 << 20, prefixes=prefixes)
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        end = perf_counter() + seconds
        while (began := perf_counter()) < end:
            batch = batches[len(durations) % len(batches)]
            run_rows(lm, batch, [None] * len(batch), token_budget=1 << 20, prefixes=prefixes)
            durations.append(1000 * (perf_counter() - began))
        milliseconds.append(statistics.median(durations))
        switches.append((resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before) / len(durations))

    threads = [threading.Thread(target=run, args=(lm,)) for lm in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statistics.mean(milliseconds), statistics.mean(switches)


def _simulate_queue(passes: Sequence[dict[str, Any]], sizes: Sequence[int], budget: int) -> list[dict[str, Any]]:
    """Return waiting times at half the rate of full passes, by the tokens of a short pass, with the measured cost of two passes at once."""
    rows = [row for row in passes if row["traced"]]
    mean = statistics.mean(sizes)
    cost = fit_cost([row["texts"] * mean for row in rows], [row["two_at_once_ms"] for row in rows])
    single = rows[0]["alone_ms"]
    rate = LANES * 1000 / cost.of(budget) * (budget / mean) / 2
    results = []
    for short in (0, 96, 128, SHORT_PASS, 256, budget):
        ordered = simulate_waits(sizes, cost, rate=rate, lanes=LANES, budget=budget, short=short, texts=SIMULATED_TEXTS)
        p50, p95, p99 = (ordered[int(share * len(ordered))] for share in (0.50, 0.95, 0.99))
        results.append(
            {"short": short, "rate": rate, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "over_single": p99 / single} | asdict(cost)
        )
    return results


def _pass_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        mode = "traced" if row["traced"] else "operator by operator"
        lines.append([row["texts"], mode, *(f"{row[name]:.0f}" for name in ("alone_ms", "two_at_once_ms", "waits"))])
    headings = ["texts a pass", "operators", "one thread alone, ms", "two threads at once, ms", "waits a pass"]
    return markdown_table(headings, lines, ["operators"])


def _overhead_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        quartiles = [", ".join(f"{value:.3f}" for value in row[kind]) for kind in ("cpu", "clock")]
        lines.append([row["texts"], row["injected"], row["turns"], *quartiles])
    headings = ["texts a pass", "injected", "turns", "CPU over the base model's: quartiles", "by the clock: quartiles"]
    return markdown_table(headings, lines, [headings[1], *headings[3:]])


def _queue_table(rows: Sequence[dict[str, Any]]) -> str:
    text = (
        f"Simulated: {rows[0]['rate']:.1f} texts a second, half of what full passes do, {LANES} lanes, passes of {rows[0]['fixed']:.0f} ms "
        f"and {rows[0]['a_token']:.2f} ms a token."
    )
    lines = [
        [row["short"], *(f"{row[name]:.0f}" for name in ("p50_ms", "p95_ms", "p99_ms")), f"{row['over_single']:.1f}"]
        for row in rows
    ]
    headings = ["tokens of a short pass", "p50 ms", "p95 ms", "p99 ms", "p99 over one text alone"]
    return f"{text}\n\n{markdown_table(headings, lines)}"


if __name__ == "__main__":
    main()
