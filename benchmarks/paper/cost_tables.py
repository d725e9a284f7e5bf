"""Tables of a client's costs: bytes, rounds and core-seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

from benchmarks.paper import reported
from benchmarks.paper.formatting import integer, machine_name, number, one_decimal
from benchmarks.paper.methods import COMPARED, LORA, SETTINGS, TITLES
from benchmarks.paper.summary import (
    ENTRIES,
    MISSING,
    ClientCost,
    Data,
    Spread,
    client_cost,
    most_common_machine,
    seconds_ratio,
)
from benchmarks.tables import Table

PARTS = ("joining", "context", "round", "evaluation")
TASK_PARTS = ("joining", "context", "head", "calibration", "evaluation")


def costs_table(data: Mapping[str, Data]) -> Table:
    """Return rounds, bytes and core-seconds of one client for every method with rounds."""
    rows, machine = [], most_common_machine(data)
    for results in data.values():
        for entry in ENTRIES:
            runs = results["runs"][entry.method]
            costs = [cost for run in runs if (cost := client_cost(run, entry.reading, results["wire"])) is not None]
            if not costs or (entry.reading == "matched" and entry.method in LORA):  # the prior costs nothing
                continue
            timed = [
                cost.seconds
                for run in runs
                if run.get("machine") == machine and (cost := client_cost(run, entry.reading, results["wire"])) is not None
            ]
            ratio = seconds_ratio(results, entry, machine)
            cells = [
                one_decimal(Spread.of([float(cost.rounds) for cost in costs])),
                one_decimal(Spread.of([float(cost.head_rounds) for cost in costs])),
                *(_mean_of(costs, name) for name in ("head_body", "head_up", "round_body", "round_up")),
                *(_mean_of(costs, name) + ("" if costs[0].whole else " *") for name in ("up", "down")),
                one_decimal(Spread.of(timed)),
                MISSING if ratio is None else f"1/{ratio:.1f}" if ratio >= 1 else f"{1 / ratio:.1f}",
                str(len(timed)),
            ]
            rows.append([results["title"], entry.title, *cells])
    headings = [
        "data",
        "method",
        "rounds",
        "head rounds",
        "head round: largest body up",
        "head round: up, with headers",
        "round: largest body up",
        "round: up, with headers",
        "bytes up in all",
        "bytes down in all",
        "core-seconds",
        f"÷ those of {TITLES['lora-8']}",
        "seeds timed",
    ]
    note = (
        f"Mean over the seeds. Core-seconds are those of the cells that ran on {machine_name(machine)}. * The bodies of the head's rounds alone, "
        "without headers."
        if machine
        else ""
    )
    return Table("Costs of one client", headings, rows, note)


def task_parts_table(data: Mapping[str, Data]) -> Table:
    """Return what each part of a task of the second generation cost a client."""
    rows = []
    for results in data.values():
        for entry in ENTRIES:
            runs = [run for run in results["runs"][entry.method] if "parts" in run]
            for name in TASK_PARTS:
                parts = [run["parts"][name] for run in runs if name in run["parts"]]
                if parts:
                    values = {key: mean(part[key] for part in parts) for key in ("rounds", "up", "down", "seconds")}
                    counts = [integer(values[key]) for key in ("rounds", "up", "down")]
                    rows.append([results["title"], entry.title, name, *counts, f"{values['seconds']:.2f}"])
    headings = ["data", "method", "part", "rounds", "bytes up", "bytes down", "core-seconds"]
    return Table("Parts of a task of the second generation, one client, headers included", headings, rows)


def bytes_table(data: Mapping[str, Data]) -> Table:
    """Return one client's bytes by part of a task of the first release, and of LoRA, beside the paper's."""
    rows = []
    methods = [method for method in COMPARED if method in SETTINGS or method in ("lora", "lora-8")]
    for results in data.values():
        wire = results["wire"] or {}
        for method in (method for method in methods if method in wire):
            parts = wire[method]
            counts = [f"{parts[name][way]:,}" if name in parts else "0" for name in PARTS for way in ("up", "down")]
            papers = "lora" if method == "lora-8" else method
            paper = (kilobytes.get(papers) for kilobytes in (reported.KILOBYTES_A_ROUND, reported.KILOBYTES_OF_CONTEXT))
            rows.append([results["title"], TITLES[method], *counts, f"{parts['bodies']['update']:,}", *map(number, paper)])
    directions = [f"{name} up" if way == "up" else way for name in PARTS for way in ("up", "down")]
    others = ["update body", "paper: kB a round", "paper: kB once"]
    return Table(
        "First release and LoRA: bytes of one client on the wire, headers included", ["data", "method", *directions, *others], rows
    )


def _mean_of(costs: Sequence[ClientCost], name: str) -> str:
    read: Callable[[ClientCost], Any] = lambda cost: getattr(cost, name)  # noqa: E731  # typed
    values = [float(value) for cost in costs if (value := read(cost)) is not None]
    return integer(mean(values) if values else None)
