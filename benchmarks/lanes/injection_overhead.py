"""The overhead of injection in a forward pass, while another thread runs passes too."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter, thread_time
from typing import Any

import torch

from ifed.modeling.batching import Row
from ifed.modeling.forward import run_rows
from ifed.modeling.injection import Injection
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.prefix_cache import PrefixSharing
from ifed.tensors.values import SITES

BASE, ONE, SEVERAL = "the base model", "one task", "a task for each text"
WARM_UP_TURNS = 2
Turn = dict[str, tuple[float, float]]


def measure_overhead(models: Sequence[LanguageModel], rows: Sequence[Row], count: int, seconds: float) -> list[dict[str, Any]]:
    """Return the time of a pass over that of the base model, by thread CPU time and by wall clock: quartiles over turns.

    In each turn the base model, one task and a task for each text run on the same texts, in random order.

    Args:
        models: one for each thread; all run concurrently.
        rows: at least `count`; a pass takes consecutive ones.
        count: texts in a pass.
        seconds: duration for every thread.
    """
    tasks = _tasks(models[0], count)
    injections: dict[str, Sequence[Injection | None]] = {BASE: [None] * count, ONE: [tasks[0]] * count, SEVERAL: tasks}

    def run(lm: LanguageModel, seed: int) -> list[Turn]:
        torch.set_num_threads(1)
        generator, thread_turns, prefixes, end = random.Random(seed), list[Turn](), PrefixSharing(lm), perf_counter() + seconds
        while perf_counter() < end or len(thread_turns) <= WARM_UP_TURNS:
            first = generator.randrange(len(rows) - count + 1)
            turn: Turn = {}
            for name in generator.sample(sorted(injections), len(injections)):
                spent, began = thread_time(), perf_counter()
                run_rows(lm, rows[first : first + count], injections[name], token_budget=1 << 20, prefixes=prefixes)
                turn[name] = thread_time() - spent, perf_counter() - began
            thread_turns.append(turn)
        return thread_turns[WARM_UP_TURNS:]

    with ThreadPoolExecutor(len(models)) as threads:
        turns = [turn for measured in threads.map(run, models, range(len(models))) for turn in measured]
    return [{"texts": count, "injected": name, "turns": len(turns)} | _over_base(turns, name) for name in (ONE, SEVERAL)]


def _over_base(turns: Sequence[Turn], name: str) -> dict[str, list[float]]:
    quartiles = {}
    for place, kind in enumerate(("cpu", "clock")):
        ratios = [turn[name][place] / turn[BASE][place] for turn in turns]
        quartiles[kind] = [round(value, 4) for value in statistics.quantiles(ratios, n=4)] if len(ratios) > 1 else ratios * 3
    return quartiles


def _tasks(lm: LanguageModel, count: int) -> list[Injection]:
    """Return random injections near the base model, in the upper half of the layers."""
    layers = tuple(range(lm.num_layers // 2, lm.num_layers))
    generator = torch.Generator().manual_seed(0)
    shape = (len(layers), len(SITES), lm.hidden_size)
    draws = [[0.05 * torch.randn(shape, generator=generator) for _ in range(2)] for _ in range(count)]
    return [Injection(layers, 1 + scale, shift) for scale, shift in draws]
