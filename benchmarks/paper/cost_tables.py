"""What a client spends, as tables: bytes on the wire, seconds. Measures nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.datasets import SOURCES
from benchmarks.paper import reported
from benchmarks.paper.formatting import number, one_decimal, ran_on, whole
from benchmarks.paper.methods import COMPARED, SETTINGS, TITLES
from benchmarks.paper.summary import (
    Data,
    Spread,
    bytes_until,
    first_seconds,
    reached,
    seconds_until,
    target,
    times_fewer,
    times_fewer_in_all,
    usual_machine,
)
from benchmarks.tables import Table

ROUNDS = tuple(method for method in COMPARED if method in ("lora", *SETTINGS))  # the methods that run rounds
PARTS = ("joining", "context", "round", "evaluation")
LORA_IN_ALL = "all of LoRA's by all of this"


def bytes_table(data: Data) -> Table:
    """Of one client, part by part, beside LoRA's and the paper's."""
    rows = []
    for key, one in data.items():
        wire = one["wire"] or {}
        for method in (method for method in ROUNDS if method in wire):
            parts = wire[method]
            each = [f"{parts[name][way]:,}" if name in parts else "0" for name in PARTS for way in ("up", "down")]
            ratios = times_fewer(wire, method), times_fewer_in_all(one, method)
            paper = (figures.get(method) for figures in (reported.KILOBYTES_A_ROUND, reported.KILOBYTES_OF_CONTEXT))
            told = [*each, f"{parts['bodies']['update']:,}", *map(whole, ratios), *map(number, paper)]
            rows.append([SOURCES[key].title, TITLES[method], *told])
    ways = [f"{name} up" if way == "up" else way for name in PARTS for way in ("up", "down")]
    last = ["update's body", "LoRA's round by this", LORA_IN_ALL, "paper: kB a round", "paper: kB once"]
    return Table("Bytes of one client on the wire, headers included", ["data", "method", *ways, *last], rows)


def seconds_table(data: Data) -> Table:
    """Of one client, and what it spends until 95 % of the best accuracy."""
    rows, machine = [], usual_machine(data)
    for key, one in data.items():
        if not any(one["runs"][method] for method in COMPARED):
            continue
        goal = target(one)
        for method in ROUNDS:
            if runs := one["runs"][method]:
                timed = [run for run in runs if run.get("machine") == machine]
                seconds = [one_decimal(spread) for spread in _seconds(timed)]
                told = [str(len(timed)), *seconds, f"{100 * goal:.1f}", *_reached(runs, timed, one["wire"], goal)]
                rows.append([SOURCES[key].title, TITLES[method], *told, number(reported.SECONDS.get(method))])
    heads = [
        "data",
        "method",
        "seeds timed",
        "s before round 1",
        "s a round",
        "s in all",
        "95 % of the best",
        "seeds there",
        "s until there",
        "bytes until there",
        "paper: s in all",
    ]
    where = (
        f"Seconds are of the cells that ran on {ran_on(machine)} alone; bytes are of all. Until there: mean over the seeds that got there, of seconds those of that machine."
        if machine
        else ""
    )
    return Table("Seconds of one client, and what 95 % of the best costs", heads, rows, where)


def _seconds(runs: Sequence[Mapping[str, Any]]) -> Iterator[Spread | None]:
    """Before the first round, a round, and in all."""
    first, in_all = [first_seconds(run) for run in runs], [seconds_until(run)[-1] for run in runs]
    yield Spread.of(first)
    yield Spread.of([(all_ - begin) / run["rows"][-1]["round"] for run, all_, begin in zip(runs, in_all, first, strict=True)])
    yield Spread.of(in_all)


def _reached(
    runs: Sequence[Mapping[str, Any]], timed: Sequence[Mapping[str, Any]], wire: Mapping[str, Any] | None, goal: float
) -> list[str]:
    """Over the seeds that got there: how many, their seconds where those are timed, their bytes."""
    places = [(run, place) for run in runs if (place := reached(run, goal)) is not None]
    seconds = Spread.of([seconds_until(run)[place] for run, place in places if run in timed])
    sent = [until[place] for run, place in places if (until := bytes_until(run, wire)) is not None]
    bytes_ = Spread.of([float(one) for one in sent])
    return [f"{len(places)} of {len(runs)}", one_decimal(seconds), whole(None if bytes_ is None else bytes_.mean)]
