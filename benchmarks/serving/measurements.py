"""The measurements in their order: rows that are compared alternate, so that other load on the machine falls on all of them."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.output import log_progress
from benchmarks.serving import random_adapters
from benchmarks.serving.load_generator import KeepAliveConnection, NextRequest, closed_loop, counted_loop, open_loop
from ifed.cli.demo.stack import ServiceProcess, Stack

SHOTS = 12
TIMEOUT_SECONDS = 40.0
COMPARED_CALLERS = (1, 32)  # numbers of callers at which rows are compared, and therefore measured several times
GOAL_CALLERS = 32  # number of callers at which the goals are evaluated
BY_TURNS = ", by turns"
TURN_REQUESTS = 192
WARM_CALLERS = 32
HALF_LOAD_TURNS = 5
MIN_HALF_LOAD_SECONDS = 40.0


@dataclass
class Row:
    """The measurements of one way to answer at one number of callers.

    Attributes:
        rates: requests a second, of each measurement.
        latencies: seconds, of all requests.
        cores: cores that the server's process uses, of each measurement.
        cpu: CPU seconds of the server's process for a request, of each measurement.
        memory: largest resident memory of the server's process, in bytes.
    """

    name: str
    callers: int
    rates: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    cores: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    memory: int = 0

    @property
    def rate(self) -> float:
        """The median rate."""
        return statistics.median(self.rates)

    def quantile(self, share: float) -> float:
        """Return a quantile of the latencies, in seconds."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def json(self) -> dict[str, Any]:
        """Return the row as it is stored and reported."""
        return {
            "name": self.name,
            "callers": self.callers,
            "requests_per_second": round(self.rate, 2),
            "requests_per_second_each": [round(rate, 2) for rate in self.rates],
            "p50_ms": round(1000 * self.quantile(0.5), 1),
            "p95_ms": round(1000 * self.quantile(0.95), 1),
            "p99_ms": round(1000 * self.quantile(0.99), 1),
            "cpu_ms_per_request": round(1000 * statistics.median(self.cpu), 1),
            "cores": round(statistics.median(self.cores), 2),
            "memory_mb": round(self.memory / 1e6),
            "requests": len(self.latencies),
        }


class Requests:
    """Endless requests, with the texts in one fixed random order and the tasks in turn."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._order = list(texts)
        random.Random(0).shuffle(self._order)
        self._texts = itertools.cycle(self._order)

    def ours(self, models: Sequence[str], *, first: int | None = None) -> NextRequest:
        """Return requests to the service for these tasks in turn, with the texts from index `first` on; by default with the next ones."""
        names = itertools.cycle(models)
        texts = self._texts if first is None else itertools.islice(itertools.cycle(self._order), first, None)
        return lambda: ("/v1/classify", {"model": next(names), "input": next(texts)})

    def plain(self, path: str) -> NextRequest:
        """Return requests to the plain endpoint."""
        return lambda: (path, {"text": next(self._texts)})


async def measure_all(options: argparse.Namespace, folder: Path) -> tuple[list[Row], dict[str, float]]:
    """Return every row, and the latencies at half load."""
    examples = [json.loads(line) for line in options.texts.read_text().splitlines()]
    labels = sorted({example["label"] for example in examples})
    requests = Requests([example["text"] for example in examples])
    identity, model_folder = random_adapters.identity(options.model, options.cache)
    random_adapters.write(folder / "adapters", max(options.tasks), identity, labels)
    demonstrations = folder / "demonstrations"
    demonstrations.mkdir()
    shown = options.demonstrations.read_text().splitlines()[: 4 * SHOTS]
    (demonstrations / "task-0.jsonl").write_text("\n".join(shown) + "\n")
    settings = {
        "ADAPTER_FOLDER": str(folder / "adapters"),
        "DEMONSTRATIONS_FOLDER": str(demonstrations),
        "OPEN_ACCESS": "true",
        "TASKS": "task-0",
        "MODEL": str(model_folder),
        "LOG_LEVEL": "WARNING",
    }
    threads = {} if options.threads is None else {"THREADS": str(options.threads)}
    with Stack(folder / "logs") as stack:
        service = stack.start("inference", "services.inference.app", settings | threads)
        stack.wait_ready(service, seconds=300)
        rows, half = await _measure_service(service, requests, options)
    with Stack(folder / "logs") as stack:
        service = stack.start("no-prefix-cache", "services.inference.app", settings | threads | {"PREFIX_BYTES": "0"})
        stack.wait_ready(service, seconds=300)
        few_shot = {f"few-shot, {SHOTS}, nothing kept": requests.ours([f"task-0@few-shot:{SHOTS}"])}
        rows += await _measure_alternating(service, few_shot, options, repeats=1, callers=COMPARED_CALLERS)
    settings = {"MODEL": str(model_folder), "TEMPLATE": random_adapters.TEMPLATE, "LABELS": "|".join(labels)}
    with Stack(folder / "logs") as stack:
        service = stack.start("plain", "benchmarks.serving.plain_endpoint", settings | threads)
        stack.wait_ready(service, seconds=300)
        variants = {"plain, one after the other": requests.plain("/async"), "plain, in threads": requests.plain("/sync")}
        rows += await _measure_alternating(service, variants, options, repeats=1, callers=options.callers)
    return rows, half


async def _measure_service(
    service: ServiceProcess, requests: Requests, options: argparse.Namespace
) -> tuple[list[Row], dict[str, float]]:
    several, many = options.tasks
    variants = {
        "one task": requests.ours(["task-0"]),
        f"{several} tasks": requests.ours([f"task-{number}" for number in range(several)]),
        f"{many} tasks": requests.ours([f"task-{number}" for number in range(many)]),
        "base model": requests.ours(["task-0@base"]),
    }
    await _warm_up(service, [f"task-{number}" for number in range(many)])
    rows = await _measure_alternating(service, variants, options, repeats=options.repeats, callers=options.callers)
    rows += await _measure_by_turns(service, requests, several, options.turns)
    half = await _half_load(service, variants["one task"], options)
    few_shot = {f"few-shot, {SHOTS}": requests.ours([f"task-0@few-shot:{SHOTS}"])}
    await _warm_up(service, [f"task-0@few-shot:{SHOTS}"])
    rows += await _measure_alternating(service, few_shot, options, repeats=1, callers=options.callers)
    return rows, half


async def _half_load(service: ServiceProcess, next_request: NextRequest, options: argparse.Namespace) -> dict[str, float]:
    """Return the latencies of requests that arrive at random, at half the rate that 32 callers reach.

    Each turn measures that rate first, and one caller alone before and after, so that a machine whose speed changes is compared with
    itself. Of every value the median over the turns, the lowest and the highest are returned.
    """

    def load(callers: int, seconds: float) -> Coroutine[Any, Any, tuple[list[float], float]]:
        return closed_loop(service.url, next_request, callers=callers, seconds=seconds, timeout_seconds=TIMEOUT_SECONDS)

    turns: list[dict[str, float]] = []
    seconds = max(MIN_HALF_LOAD_SECONDS, 10 * options.seconds)
    for seed in range(HALF_LOAD_TURNS):
        full, single = Row("one task, before half load", GOAL_CALLERS), Row("one task, around half load", 1)
        await _measure(service, full, load(GOAL_CALLERS, 2 * options.seconds))
        await _measure(service, single, load(1, options.seconds))
        half = Row(
            "half load", 0, latencies=await open_loop(service.url, next_request, rate=full.rate / 2, seconds=seconds, seed=seed)
        )
        await _measure(service, single, load(1, options.seconds))
        turns.append(half_load_turn(full, single, half))
        log_progress(f"half load, {full.rate / 2:.1f} requests/s: p99 {turns[-1]['p99_over_single']:.1f} times one request alone")
    return over_turns(turns)


def half_load_turn(full: Row, single: Row, half: Row) -> dict[str, float]:
    """Return the values of one turn."""
    percentiles = {f"p{share}_ms": 1000 * half.quantile(share / 100) for share in (50, 95, 99)}
    alone = 1000 * single.quantile(0.5)
    return (
        {"requests_per_second": full.rate / 2, "single_request_ms": alone}
        | percentiles
        | {"p99_over_single": percentiles["p99_ms"] / alone}
    )


def over_turns(turns: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the median of each value, and beside it the lowest and the highest."""
    values: dict[str, float] = {}
    for name in turns[0]:
        by_turn = [turn[name] for turn in turns]
        values |= {name: statistics.median(by_turn), f"{name}_lowest": min(by_turn), f"{name}_highest": max(by_turn)}
    return {name: round(value, 2) for name, value in values.items()}


async def _warm_up(service: ServiceProcess, models: Sequence[str]) -> None:
    """Send one short request for every task, so that no adapter is loaded while a row is measured."""
    remaining = iter(models)

    async def caller() -> None:
        connection = KeepAliveConnection(service.url)
        for model in remaining:
            await connection.post("/v1/classify", {"model": model, "input": "news"})
        connection.close()

    log_progress(f"warming up {len(models)} tasks")
    await asyncio.gather(*(caller() for _ in range(WARM_CALLERS)))


async def _measure_alternating(
    service: ServiceProcess, variants: dict[str, NextRequest], options: argparse.Namespace, *, repeats: int, callers: Sequence[int]
) -> list[Row]:
    rows: list[Row] = []
    for count in callers:
        measured = {name: Row(name, count) for name in variants}
        times = repeats if count in COMPARED_CALLERS else 1
        for _, (name, next_request) in itertools.product(range(times), variants.items()):
            load = closed_loop(service.url, next_request, callers=count, seconds=options.seconds, timeout_seconds=TIMEOUT_SECONDS)
            await _measure(service, measured[name], load)
        rows += measured.values()
    return rows


async def _measure_by_turns(service: ServiceProcess, requests: Requests, several: int, turns: int) -> list[Row]:
    """Measure one task, several tasks and the base model, which differ little, on the same texts, cycling through the six orders."""
    models = {
        "one task": ["task-0"],
        f"{several} tasks": [f"task-{number}" for number in range(several)],
        "base model": ["task-0@base"],
    }
    rows = {name: Row(name + BY_TURNS, GOAL_CALLERS) for name in models}
    for turn, order in zip(range(turns), itertools.cycle(itertools.permutations(models)), strict=False):
        for name in order:
            next_request = requests.ours(models[name], first=turn * TURN_REQUESTS)
            await _measure(
                service, rows[name], counted_loop(service.url, next_request, callers=GOAL_CALLERS, requests=TURN_REQUESTS)
            )
    return list(rows.values())


async def _measure(service: ServiceProcess, row: Row, load: Coroutine[Any, Any, tuple[list[float], float]]) -> None:
    process = psutil.Process(service.process.pid)
    before = sum(process.cpu_times()[:2])
    latencies, elapsed = await load
    used = sum(process.cpu_times()[:2]) - before
    row.rates.append(len(latencies) / elapsed)
    row.latencies += latencies
    row.cores.append(used / elapsed)
    row.cpu.append(used / len(latencies))
    row.memory = max(row.memory, process.memory_info().rss)
    log_progress(f"{row.name}, {row.callers} callers: {row.rates[-1]:.1f} requests/s, {1000 * row.cpu[-1]:.1f} ms of CPU each")
