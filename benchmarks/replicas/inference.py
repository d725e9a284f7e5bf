"""How fast one inference service with all cores answers, and several that share them. Prints nothing."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.aggregator.report import percentile
from benchmarks.serving import random_adapters
from benchmarks.serving.load_generator import Body, closed_loop
from ifed.cli.demo.stack import Service, Stack

LABELS = ["business", "science", "sports", "world"]
WORDS = (
    "the",
    "a",
    "market",
    "team",
    "won",
    "lost",
    "after",
    "report",
    "said",
    "new",
    "study",
    "match",
    "shares",
    "minister",
    "rose",
)
PATIENCE = 60.0


def _body(seed: int) -> Body:
    """Texts of 10 to 40 words, drawn anew each time: one to each request."""
    chance = random.Random(seed)
    return lambda: ("/v1/classify", {"model": "task-0", "input": " ".join(chance.choices(WORDS, k=chance.randint(10, 40)))})


def inference(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A row for each number of replicas and of callers; they take turns, so that a busy moment of the machine hits all of them."""
    identity, model = random_adapters.identity(options.model, options.cache)
    random_adapters.write(folder / "adapters", 1, identity, LABELS)
    cores = os.cpu_count() or 1
    given = {
        "ADAPTER_FOLDER": str(folder / "adapters"),
        "OPEN_ACCESS": "true",
        "TASKS": "task-0",
        "MODEL": str(model),
        "LOG_LEVEL": "WARNING",
    }
    with Stack(folder / "logs") as stack:
        sides: dict[int, list[Service]] = {}
        for count in options.inference:
            threads = {"THREADS": str(max(1, cores // count))}
            sides[count] = [stack.start(f"inference-{count}-{n}", "services.inference.app", given | threads) for n in range(count)]
        for service in itertools.chain.from_iterable(sides.values()):
            stack.wait_ready(service, seconds=300)
        return asyncio.run(_in_turn(sides, options, cores))


async def _in_turn(sides: dict[int, list[Service]], options: argparse.Namespace, cores: int) -> list[dict[str, Any]]:
    rates: dict[tuple[int, int], list[float]] = {}
    latencies: dict[tuple[int, int], list[float]] = {}
    for services in sides.values():
        await _asked(services, callers=8, seconds=2.0)  # warm up
    for _, callers, (count, services) in itertools.product(range(options.repeats), options.callers, sides.items()):
        found, rate = await _asked(services, callers=callers, seconds=options.seconds)
        rates.setdefault((count, callers), []).append(rate)
        latencies.setdefault((count, callers), []).extend(found)
    memory = {
        count: sum(psutil.Process(one.process.pid).memory_info().rss for one in services) for count, services in sides.items()
    }
    return [
        {
            "replicas": count,
            "threads_each": max(1, cores // count),
            "callers": callers,
            "requests_per_second": round(median(each), 1),
            "requests_per_second_each": [round(rate, 1) for rate in each],
            "p50_ms": round(1000 * percentile(latencies[count, callers], 50), 1),
            "p99_ms": round(1000 * percentile(latencies[count, callers], 99), 1),
            "memory_mb": round(memory[count] / 1e6),
        }
        for (count, callers), each in sorted(rates.items(), key=lambda item: (item[0][1], item[0][0]))
    ]


async def _asked(services: list[Service], *, callers: int, seconds: float) -> tuple[list[float], float]:
    """Latencies and requests a second of callers spread evenly over the services; with fewer callers than services some rest."""
    shares = [callers // len(services) + (number < callers % len(services)) for number in range(len(services))]
    asked = [
        closed_loop(service.url, _body(number), callers=share, seconds=seconds, patience=PATIENCE)
        for number, (service, share) in enumerate(zip(services, shares, strict=True))
        if share
    ]
    found = await asyncio.gather(*asked)
    return [one for latencies, _ in found for one in latencies], sum(len(latencies) / took for latencies, took in found)
