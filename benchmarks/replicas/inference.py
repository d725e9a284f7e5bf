"""The speed of one inference service with all cores, and of several that share them."""

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
from benchmarks.serving.load_generator import NextRequest, closed_loop
from ifed.cli.demo.stack import ServiceProcess, Stack

LABELS = ["business", "science", "sports", "world"]
WORDS = (
    *("the", "a", "market", "team", "won", "lost", "after", "report", "said", "new"),
    *("study", "match", "shares", "minister", "rose"),
)
TIMEOUT_SECONDS = 60.0


def _random_texts(seed: int) -> NextRequest:
    """Return requests with texts of 10 to 40 random words."""
    generator = random.Random(seed)
    return lambda: ("/v1/classify", {"model": "task-0", "input": " ".join(generator.choices(WORDS, k=generator.randint(10, 40)))})


def measure_inference(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Return a row for each number of replicas and of callers; the measurements alternate, so that other load falls on all of them."""
    identity, model = random_adapters.identity(options.model, options.cache)
    random_adapters.write(folder / "adapters", 1, identity, LABELS)
    cores = os.cpu_count() or 1
    settings = {
        "ADAPTER_FOLDER": str(folder / "adapters"),
        "OPEN_ACCESS": "true",
        "TASKS": "task-0",
        "MODEL": str(model),
        "LOG_LEVEL": "WARNING",
    }
    with Stack(folder / "logs") as stack:
        deployments: dict[int, list[ServiceProcess]] = {}
        for count in options.inference:
            threads = {"THREADS": str(max(1, cores // count))}
            deployments[count] = [
                stack.start(f"inference-{count}-{index}", "services.inference.app", settings | threads) for index in range(count)
            ]
        for service in itertools.chain.from_iterable(deployments.values()):
            stack.wait_ready(service, seconds=300)
        return asyncio.run(_measure_alternating(deployments, options, cores))


async def _measure_alternating(
    deployments: dict[int, list[ServiceProcess]], options: argparse.Namespace, cores: int
) -> list[dict[str, Any]]:
    rates: dict[tuple[int, int], list[float]] = {}
    latencies: dict[tuple[int, int], list[float]] = {}
    for services in deployments.values():
        await _measure(services, callers=8, seconds=2.0)  # warm up
    for _, callers, (count, services) in itertools.product(range(options.repeats), options.callers, deployments.items()):
        seconds, rate = await _measure(services, callers=callers, seconds=options.seconds)
        rates.setdefault((count, callers), []).append(rate)
        latencies.setdefault((count, callers), []).extend(seconds)
    memory = {
        count: sum(psutil.Process(service.process.pid).memory_info().rss for service in services)
        for count, services in deployments.items()
    }
    return [
        {
            "replicas": count,
            "threads_each": max(1, cores // count),
            "callers": callers,
            "requests_per_second": round(median(measured), 1),
            "requests_per_second_each": [round(rate, 1) for rate in measured],
            "p50_ms": round(1000 * percentile(latencies[count, callers], 50), 1),
            "p99_ms": round(1000 * percentile(latencies[count, callers], 99), 1),
            "memory_mb": round(memory[count] / 1e6),
        }
        for (count, callers), measured in sorted(rates.items(), key=lambda item: (item[0][1], item[0][0]))
    ]


async def _measure(services: list[ServiceProcess], *, callers: int, seconds: float) -> tuple[list[float], float]:
    """Return latencies and requests a second of callers spread evenly over the services."""
    shares = [callers // len(services) + (index < callers % len(services)) for index in range(len(services))]
    loops = [
        closed_loop(service.url, _random_texts(index), callers=share, seconds=seconds, timeout_seconds=TIMEOUT_SECONDS)
        for index, (service, share) in enumerate(zip(services, shares, strict=True))
        if share
    ]
    results = await asyncio.gather(*loops)
    rate = sum(len(latencies) / elapsed for latencies, elapsed in results)
    return [latency for latencies, _ in results for latency in latencies], rate
