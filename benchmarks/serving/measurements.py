"""What is measured, in which order: rows that are compared take turns, so that a busy moment of the machine hits all of them."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import sys
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.serving import random_adapters
from benchmarks.serving.load_generator import Body, Connection, closed_loop, counted_loop, open_loop
from ifed.cli.demo.stack import Service, Stack

SHOTS = 12
PATIENCE = 40.0
COMPARED = (1, 32)  # callers at which rows are held against each other, and so measured several times
AT = 32  # callers at which the goals stand
BY_TURNS = ", by turns"
TURN_REQUESTS = 192
WARM_CALLERS = 32
HALF_LOAD_TURNS = 5
LEAST_HALF_LOAD = 40.0  # seconds


@dataclass
class Row:
    """One way to answer, asked by so many callers. Seconds, requests a second, cores, seconds of CPU a request, bytes."""

    name: str
    callers: int
    rates: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    cores: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    memory: int = 0

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    def quantile(self, share: float) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def json(self) -> dict[str, Any]:
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


class Bodies:
    """Requests in turn: the texts in one fixed random order, the tasks likewise."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._order = list(texts)
        random.Random(0).shuffle(self._order)
        self._texts = itertools.cycle(self._order)

    def ours(self, models: Sequence[str], *, first: int | None = None) -> Body:
        """Requests for these tasks in turn, with the texts from the place `first` on; with what comes next unless told."""
        names = itertools.cycle(models)
        texts = self._texts if first is None else itertools.islice(itertools.cycle(self._order), first, None)
        return lambda: ("/v1/classify", {"model": next(names), "input": next(texts)})

    def plain(self, path: str) -> Body:
        return lambda: (path, {"text": next(self._texts)})


async def measure_all(options: argparse.Namespace, folder: Path) -> tuple[list[Row], dict[str, float]]:
    """Every row, and the latencies at half load."""
    examples = [json.loads(line) for line in options.texts.read_text().splitlines()]
    labels = sorted({one["label"] for one in examples})
    bodies = Bodies([one["text"] for one in examples])
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
        rows, half = await _ours(service, bodies, options)
    with Stack(folder / "logs") as stack:
        service = stack.start("forgetful", "services.inference.app", settings | threads | {"PREFIX_BYTES": "0"})
        stack.wait_ready(service, seconds=300)
        few_shot = {f"few-shot, {SHOTS}, nothing kept": bodies.ours([f"task-0@few-shot:{SHOTS}"])}
        rows += await _in_turn(service, few_shot, options, repeats=1, callers=COMPARED)
    settings = {"MODEL": str(model_folder), "TEMPLATE": random_adapters.TEMPLATE, "LABELS": "|".join(labels)}
    with Stack(folder / "logs") as stack:
        service = stack.start("plain", "benchmarks.serving.plain_endpoint", settings | threads)
        stack.wait_ready(service, seconds=300)
        ways = {"plain, one after the other": bodies.plain("/async"), "plain, in threads": bodies.plain("/sync")}
        rows += await _in_turn(service, ways, options, repeats=1, callers=options.callers)
    return rows, half


async def _ours(service: Service, bodies: Bodies, options: argparse.Namespace) -> tuple[list[Row], dict[str, float]]:
    some, many = options.tasks
    ways = {
        "one task": bodies.ours(["task-0"]),
        f"{some} tasks": bodies.ours([f"task-{number}" for number in range(some)]),
        f"{many} tasks": bodies.ours([f"task-{number}" for number in range(many)]),
        "bare model": bodies.ours(["task-0@bare"]),
    }
    await _warm_up(service, [f"task-{number}" for number in range(many)])
    rows = await _in_turn(service, ways, options, repeats=options.repeats, callers=options.callers)
    rows += await _by_turns(service, bodies, some, options.turns)
    half = await _half_load(service, ways["one task"], options)
    few_shot = {f"few-shot, {SHOTS}": bodies.ours([f"task-0@few-shot:{SHOTS}"])}
    await _warm_up(service, [f"task-0@few-shot:{SHOTS}"])
    rows += await _in_turn(service, few_shot, options, repeats=1, callers=options.callers)
    return rows, half


async def _half_load(service: Service, body: Body, options: argparse.Namespace) -> dict[str, float]:
    """Latencies of requests that arrive at random, at half the rate that 32 callers reach.

    In turns, each of which measures that rate before and one caller alone before and after, so that a machine whose pace changes is held
    against itself. Of every figure the median over the turns, the lowest and the highest.
    """

    def asked_by(callers: int, seconds: float) -> Coroutine[Any, Any, tuple[list[float], float]]:
        return closed_loop(service.url, body, callers=callers, seconds=seconds, patience=PATIENCE)

    turns: list[dict[str, float]] = []
    seconds = max(LEAST_HALF_LOAD, 10 * options.seconds)
    for seed in range(HALF_LOAD_TURNS):
        full, single = Row("one task, before half load", AT), Row("one task, around half load", 1)
        await _measure(service, full, asked_by(AT, 2 * options.seconds))
        await _measure(service, single, asked_by(1, options.seconds))
        half = Row("half load", 0, latencies=await open_loop(service.url, body, rate=full.rate / 2, seconds=seconds, seed=seed))
        await _measure(service, single, asked_by(1, options.seconds))
        turns.append(half_load_turn(full, single, half))
        _say(f"half load, {full.rate / 2:.1f} requests/s: p99 {turns[-1]['p99_over_single']:.1f} times one request alone")
    return over_turns(turns)


def half_load_turn(full: Row, single: Row, half: Row) -> dict[str, float]:
    """The figures of one turn."""
    found = {f"p{share}_ms": 1000 * half.quantile(share / 100) for share in (50, 95, 99)}
    alone = 1000 * single.quantile(0.5)
    return {"requests_per_second": full.rate / 2, "single_request_ms": alone} | found | {"p99_over_single": found["p99_ms"] / alone}


def over_turns(turns: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of each figure the median, and beside it the lowest and the highest."""
    found: dict[str, float] = {}
    for name in turns[0]:
        each = [turn[name] for turn in turns]
        found |= {name: statistics.median(each), f"{name}_lowest": min(each), f"{name}_highest": max(each)}
    return {name: round(value, 2) for name, value in found.items()}


async def _warm_up(service: Service, models: Sequence[str]) -> None:
    """Let every task be asked once, with a text of a word, so that no adapter is read while a row is measured."""
    left = iter(models)

    async def caller() -> None:
        connection = Connection(service.url)
        for model in left:
            await connection.post("/v1/classify", {"model": model, "input": "news"})
        connection.close()

    _say(f"asking once, so that it is warm: {len(models)}")
    await asyncio.gather(*(caller() for _ in range(WARM_CALLERS)))


async def _in_turn(
    service: Service, ways: dict[str, Body], options: argparse.Namespace, *, repeats: int, callers: Sequence[int]
) -> list[Row]:
    rows: list[Row] = []
    for count in callers:
        some = {name: Row(name, count) for name in ways}
        times = repeats if count in COMPARED else 1
        for _, (name, body) in itertools.product(range(times), ways.items()):
            asking = closed_loop(service.url, body, callers=count, seconds=options.seconds, patience=PATIENCE)
            await _measure(service, some[name], asking)
        rows += some.values()
    return rows


async def _by_turns(service: Service, bodies: Bodies, some: int, turns: int) -> list[Row]:
    """One task, several and the bare model, which differ by little, on the same texts one after the other, in one of the six orders after another."""
    models = {"one task": ["task-0"], f"{some} tasks": [f"task-{number}" for number in range(some)], "bare model": ["task-0@bare"]}
    rows = {name: Row(name + BY_TURNS, AT) for name in models}
    for turn, order in zip(range(turns), itertools.cycle(itertools.permutations(models)), strict=False):
        for name in order:
            body = bodies.ours(models[name], first=turn * TURN_REQUESTS)
            await _measure(service, rows[name], counted_loop(service.url, body, callers=AT, requests=TURN_REQUESTS))
    return list(rows.values())


async def _measure(service: Service, row: Row, asking: Coroutine[Any, Any, tuple[list[float], float]]) -> None:
    process = psutil.Process(service.process.pid)
    before = sum(process.cpu_times()[:2])
    latencies, took = await asking
    used = sum(process.cpu_times()[:2]) - before
    row.rates.append(len(latencies) / took)
    row.latencies += latencies
    row.cores.append(used / took)
    row.cpu.append(used / len(latencies))
    row.memory = max(row.memory, process.memory_info().rss)
    _say(f"{row.name}, {row.callers} callers: {row.rates[-1]:.1f} requests/s, {1000 * row.cpu[-1]:.1f} ms of CPU each")


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)
