"""What the cells found, as Markdown tables beside what the paper reports. Measures nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.federated.texts import SOURCES
from benchmarks.paper import reported
from benchmarks.paper.methods import SETTINGS, TITLES
from benchmarks.paper.summary import (
    Data,
    Spread,
    bytes_until,
    first_seconds,
    goals,
    over_seeds,
    reached,
    seconds_until,
    target,
    times_fewer,
    times_fewer_in_all,
)

ROUNDS = ("lora", *SETTINGS)  # the methods that run rounds
PARTS = ("joining", "context", "round", "evaluation")
READINGS = ("accuracy_plain", "accuracy_prior_matched")
NONE = "–"


def tables(found: Mapping[str, Any]) -> str:
    """Every table for which something was measured."""
    data = found["data"]
    parts = [_machine(found), _accuracy(data), _bytes(data), _times(data), _local(data), _sweep(data), _goals(found)]
    return "\n\n".join(part for part in parts if part)


def _machine(found: Mapping[str, Any]) -> str:
    plan = found["plan"]
    seeds = max((len(runs) for one in found["data"].values() for runs in one["runs"].values()), default=0)
    words = (
        f"{found['model']}; {plan['clients']} clients, Dirichlet {plan['alpha']}, {plan['training']} training and {plan['test']} test examples, "
        f"{plan['rounds']} rounds of {plan['local_steps']} steps of {plan['batch_size']} examples, local coefficients on {plan['few']} texts, up to {seeds} seeds."
    )
    told = [
        f"{one['cpu']}{' with AMX' if one['amx'] else ''}, {one['cores']} cores, on {one['device']} in {one['dtype']}, torch {one['torch']}"
        for one in found["machines"]
    ]
    return f"{words} Measured on {'; and on '.join(told)}." if told else words


def _accuracy(data: Data) -> str:
    rows = []
    for key, one in data.items():
        for method, title in TITLES.items():
            accuracy, score = over_seeds(one, method, "accuracy"), over_seeds(one, method, "macro_f1")
            if accuracy is None:
                continue
            ways = [None if method == "icl" else over_seeds(one, method, name) for name in READINGS]
            paper = [_number(figure(method, key)) for figure in (reported.accuracy, reported.macro_f1)]
            rows.append(
                [SOURCES[key].title, title, _spread(accuracy), _spread(score), *map(_spread, ways), str(accuracy.count), *paper]
            )
    heads = [
        "data",
        "method",
        "accuracy %",
        "macro-F1 %",
        "prior kept",
        "prior matched",
        "seeds",
        "paper: accuracy",
        "paper: macro-F1",
    ]
    return _table("Accuracy after the last round", heads, rows)


def _bytes(data: Data) -> str:
    rows = []
    for key, one in data.items():
        if (wire := one["wire"]) is None:
            continue
        for method in ROUNDS:
            if (parts := wire.get(method)) is None:
                continue
            each = [f"{parts[name][way]:,}" if name in parts else "0" for name in PARTS for way in ("up", "down")]
            times = NONE if (ratio := times_fewer(wire, method)) is None else f"{ratio:,.0f}"
            whole = NONE if (ratio := times_fewer_in_all(one, method)) is None else f"{ratio:,.0f}"
            rows.append([SOURCES[key].title, TITLES[method], *each, f"{parts['bodies']['update']:,}", times, whole])
    heads = [
        "data",
        "method",
        "joining up",
        "down",
        "context up",
        "down",
        "round up",
        "down",
        "evaluation up",
        "down",
        "update's body",
        "LoRA's round by this",
        "all of LoRA's by all of this",
    ]
    return _table("Bytes of one client on the wire, headers included", heads, rows)


def _times(data: Data) -> str:
    rows = []
    for key, one in data.items():
        if not any(one["runs"].values()):
            continue
        goal = target(one)
        for method in ROUNDS:
            if runs := one["runs"][method]:
                whole = [seconds_until(run)[-1] for run in runs]
                first = [first_seconds(run) for run in runs]
                rounds = runs[0]["rows"][-1]["round"]
                each = [(all_ - begin) / rounds for all_, begin in zip(whole, first, strict=True)]
                told = [_plain(Spread.of(values)) for values in (first, each, whole)]
                rows.append([SOURCES[key].title, TITLES[method], *told, f"{100 * goal:.1f}", *_reached(runs, one["wire"], goal)])
    heads = [
        "data",
        "method",
        "s before round 1",
        "s a round",
        "s in all",
        "95 % of the best",
        "seeds there",
        "s until there",
        "bytes until there",
    ]
    return _table("Seconds of one client", heads, rows)


def _reached(runs: Sequence[Mapping[str, Any]], wire: Mapping[str, Any] | None, goal: float) -> list[str]:
    """Over the seeds that got there."""
    places = [(run, place) for run in runs if (place := reached(run, goal)) is not None]
    seconds = Spread.of([seconds_until(run)[place] for run, place in places])
    sent = [until[place] for run, place in places if (until := bytes_until(run, wire)) is not None]
    bytes_ = Spread.of([float(one) for one in sent])
    return [f"{len(places)} of {len(runs)}", _plain(seconds), NONE if bytes_ is None else f"{bytes_.mean:,.0f}"]


def _local(data: Data) -> str:
    rows = []
    for key, one in data.items():
        for method in ("published", "ours"):
            runs = [run for run in one["runs"][method] if "local" in run["rows"][-1]]
            if not runs:
                continue
            both = {name: [100 * run["rows"][-1][name] for run in runs] for name in ("global", "local")}
            gains = [after - alone for after, alone in zip(both["global"], both["local"], strict=True)]
            told = [_plain(Spread.of(values)) for values in (both["global"], both["local"], gains)]
            paper = reported.GAIN_OVER_LOCAL[reported.ORDER.index(key)] if method == "published" else None
            rows.append([SOURCES[key].title, TITLES[method], *told, str(len(runs)), _number(paper)])
    heads = ["data", "method", "global %", "mean of local %", "gain", "seeds", "paper: gain"]
    return _table("Global coefficients against each client's own, last round", heads, rows)


def _sweep(data: Data) -> str:
    rows = [
        [
            SOURCES[key].title,
            f"{run['rate']:g}",
            f"{100 * run['rows'][-1]['accuracy']:.1f}",
            f"{run['rows'][-1]['loss']:.3f}",
            "best" if run["rate"] == one["rate"] else "",
        ]
        for key, one in data.items()
        for run in one["sweep"]
    ]
    return _table("FedAvg-LoRA: the learning rate", ["data", "rate", "accuracy %", "training loss", ""], rows)


def _goals(found: Mapping[str, Any]) -> str:
    said = {True: "met", False: "missed", None: "not measured"}
    rows = [[goal.words, goal.found, said[goal.met]] for goal in goals(found)]
    return _table("Goals", ["goal", "found", ""], rows)


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(_lines(title, heads, rows)) if rows else ""


def _lines(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield from (f"### {title}", "")
    ways = ["---" if head in ("data", "method", "goal", "found", "") else "---:" for head in heads]
    for line in (heads, ways, *rows):
        yield f"| {' | '.join(line)} |"


def _spread(spread: Spread | None) -> str:
    """Shares as percent."""
    if spread is None:
        return NONE
    deviation = "" if spread.deviation is None else f" ± {100 * spread.deviation:.1f}"
    return f"{100 * spread.mean:.1f}{deviation}"


def _plain(spread: Spread | None) -> str:
    return NONE if spread is None else f"{spread.mean:.1f}"


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value}"
