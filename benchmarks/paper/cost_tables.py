"""Tables of a client's costs: bytes on the wire, and seconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.datasets import DATASETS
from benchmarks.paper import reported
from benchmarks.paper.formatting import integer, machine_name, number, one_decimal
from benchmarks.paper.methods import COMPARED, SETTINGS, TITLES
from benchmarks.paper.summary import (
    Data,
    Spread,
    byte_ratio_a_round,
    byte_ratio_in_all,
    bytes_until,
    first_row_reaching,
    first_seconds,
    most_common_machine,
    seconds_until,
    target,
)
from benchmarks.tables import Table

METHODS_WITH_ROUNDS = tuple(method for method in COMPARED if method in ("lora", *SETTINGS))
PARTS = ("joining", "context", "round", "evaluation")
RATIO_IN_ALL = "LoRA's bytes in all ÷ this"


def bytes_table(data: Data) -> Table:
    """Return one client's bytes by part of a task, beside LoRA's and the paper's."""
    rows = []
    for key, results in data.items():
        wire = results["wire"] or {}
        for method in (method for method in METHODS_WITH_ROUNDS if method in wire):
            parts = wire[method]
            counts = [f"{parts[name][way]:,}" if name in parts else "0" for name in PARTS for way in ("up", "down")]
            ratios = byte_ratio_a_round(wire, method), byte_ratio_in_all(results, method)
            paper = (kilobytes.get(method) for kilobytes in (reported.KILOBYTES_A_ROUND, reported.KILOBYTES_OF_CONTEXT))
            cells = [*counts, f"{parts['bodies']['update']:,}", *map(integer, ratios), *map(number, paper)]
            rows.append([DATASETS[key].title, TITLES[method], *cells])
    directions = [f"{name} up" if way == "up" else way for name in PARTS for way in ("up", "down")]
    others = ["update body", "LoRA's bytes a round ÷ this", RATIO_IN_ALL, "paper: kB a round", "paper: kB once"]
    return Table("Bytes of one client on the wire, headers included", ["data", "method", *directions, *others], rows)


def seconds_table(data: Data) -> Table:
    """Return one client's seconds, and its costs until 95 % of the best accuracy."""
    rows, machine = [], most_common_machine(data)
    for key, results in data.items():
        if not any(results["runs"][method] for method in COMPARED):
            continue
        goal = target(results)
        for method in METHODS_WITH_ROUNDS:
            if runs := results["runs"][method]:
                timed = [run for run in runs if run.get("machine") == machine]
                seconds = [one_decimal(spread) for spread in _seconds(timed)]
                cells = [str(len(timed)), *seconds, f"{100 * goal:.1f}", *_cost_until(runs, timed, results["wire"], goal)]
                rows.append([DATASETS[key].title, TITLES[method], *cells, number(reported.SECONDS.get(method))])
    headings = [
        "data",
        "method",
        "seeds timed",
        "s before round 1",
        "s a round",
        "s in all",
        "95 % of the best",
        "seeds that reach it",
        "s until then",
        "bytes until then",
        "paper: s in all",
    ]
    note = (
        f"Seconds are those of the cells that ran on {machine_name(machine)}; bytes are those of all cells. "
        "“Until then” is the mean over the seeds that reach the target; for seconds, over those of them that ran on that machine."
        if machine
        else ""
    )
    return Table("Seconds of one client, and the cost of 95 % of the best accuracy", headings, rows, note)


def _seconds(runs: Sequence[Mapping[str, Any]]) -> Iterator[Spread | None]:
    """Yield the seconds before the first round, of a round, and in all."""
    first, in_all = [first_seconds(run) for run in runs], [seconds_until(run)[-1] for run in runs]
    yield Spread.of(first)
    yield Spread.of([(total - start) / run["rows"][-1]["round"] for run, total, start in zip(runs, in_all, first, strict=True)])
    yield Spread.of(in_all)


def _cost_until(
    runs: Sequence[Mapping[str, Any]], timed: Sequence[Mapping[str, Any]], wire: Mapping[str, Any] | None, goal: float
) -> list[str]:
    """Return how many seeds reach the goal, and the mean seconds (of the timed ones) and bytes until they do."""
    reached = [(run, index) for run in runs if (index := first_row_reaching(run, goal)) is not None]
    seconds = Spread.of([seconds_until(run)[index] for run, index in reached if run in timed])
    counts = [until[index] for run, index in reached if (until := bytes_until(run, wire)) is not None]
    spread = Spread.of([float(count) for count in counts])
    return [f"{len(reached)} of {len(runs)}", one_decimal(seconds), integer(None if spread is None else spread.mean)]
