"""What the cells found, as Markdown tables beside what the paper reports. Measures nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.federated.texts import SOURCES
from benchmarks.pages import Table
from benchmarks.paper import reported
from benchmarks.paper.methods import SETTINGS, SWEEP_SEED, TITLES
from benchmarks.paper.summary import (
    NONE,
    Data,
    Spread,
    bytes_until,
    first_seconds,
    goals,
    last,
    over_seeds,
    reached,
    seconds_until,
    target,
    times_fewer,
    times_fewer_in_all,
    usual_machine,
)

ROUNDS = ("lora", *SETTINGS)  # the methods that run rounds
PARTS = ("joining", "context", "round", "evaluation")
READINGS = ("accuracy_plain", "accuracy_prior_matched")


def markdown(found: Mapping[str, Any]) -> str:
    """Every table, with what was run and where before them."""
    return "\n\n".join([_machine(found), *(one.markdown() for one in tables(found))])


def tables(found: Mapping[str, Any]) -> list[Table]:
    """Every table for which something was measured."""
    data = found["data"]
    made = (_accuracy(data), _bytes(data), _times(data), _local(data, found["plan"]), _sweep(data), _goals(found))
    return [replace(one, wordy=("data", "method", "goal", "found", "")) for one in made if one.rows]


def _machine(found: Mapping[str, Any]) -> str:
    plan = found["plan"]
    seeds = max((len(runs) for one in found["data"].values() for runs in one["runs"].values()), default=0)
    words = (
        f"{found['model']}; {plan['clients']} clients, Dirichlet {plan['alpha']}, {plan['training']} training and {plan['test']} test examples, "
        f"{plan['rounds']} rounds of {plan['local_steps']} steps of {plan['batch_size']} examples, local coefficients on {plan['few']} texts, up to {seeds} seeds."
    )
    told = [_ran_on(one) for one in found["machines"]]
    return f"{words} Measured on {'; and on '.join(told)}." if told else words


def _ran_on(machine: Mapping[str, Any]) -> str:
    cpu = f"{machine['cpu']}{' with AMX' if machine['amx'] else ''}, {machine['cores']} cores"
    threads = f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"
    return f"{cpu}, {threads}, on {machine['device']} in {machine['dtype']}, torch {machine['torch']}"


def _accuracy(data: Data) -> Table:
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
    return Table("Accuracy after the last round", heads, rows)


def _bytes(data: Data) -> Table:
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
            paper = (reported.KILOBYTES_A_ROUND, reported.KILOBYTES_OF_CONTEXT)
            told = [_number(figures.get(method)) for figures in paper]
            rows.append([SOURCES[key].title, TITLES[method], *each, f"{parts['bodies']['update']:,}", times, whole, *told])
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
        "paper: kB a round",
        "paper: kB once",
    ]
    return Table("Bytes of one client on the wire, headers included", heads, rows)


def _times(data: Data) -> Table:
    rows, machine = [], usual_machine(data)
    for key, one in data.items():
        if not any(one["runs"].values()):
            continue
        goal = target(one)
        for method in ROUNDS:
            if runs := one["runs"][method]:
                timed = [run for run in runs if run.get("machine") == machine]
                seconds = [_plain(spread) for spread in _seconds(timed)]
                told = [str(len(timed)), *seconds, f"{100 * goal:.1f}", *_reached(runs, timed, one["wire"], goal)]
                rows.append([SOURCES[key].title, TITLES[method], *told, _number(reported.SECONDS.get(method))])
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
    where = f"Seconds are of the cells that ran on {_ran_on(machine)} alone; bytes are of all." if machine else ""
    return Table("Seconds of one client, and what 95 % of the best costs", heads, rows, where)


def _seconds(runs: Sequence[Mapping[str, Any]]) -> Iterator[Spread | None]:
    """Before the first round, a round, and in all."""
    first, whole = [first_seconds(run) for run in runs], [seconds_until(run)[-1] for run in runs]
    yield Spread.of(first)
    yield Spread.of([(all_ - begin) / run["rows"][-1]["round"] for run, all_, begin in zip(runs, whole, first, strict=True)])
    yield Spread.of(whole)


def _reached(
    runs: Sequence[Mapping[str, Any]], timed: Sequence[Mapping[str, Any]], wire: Mapping[str, Any] | None, goal: float
) -> list[str]:
    """Over the seeds that got there: how many, their seconds where those are timed, their bytes."""
    places = [(run, place) for run in runs if (place := reached(run, goal)) is not None]
    seconds = Spread.of([seconds_until(run)[place] for run, place in places if run in timed])
    sent = [until[place] for run, place in places if (until := bytes_until(run, wire)) is not None]
    bytes_ = Spread.of([float(one) for one in sent])
    return [f"{len(places)} of {len(runs)}", _plain(seconds), NONE if bytes_ is None else f"{bytes_.mean:,.0f}"]


def _local(data: Data, plan: Mapping[str, Any]) -> Table:
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
    note = f"On the first {plan['few']} texts of the test set."
    return Table("Global coefficients against each client's own, last round", heads, rows, note)


def _sweep(data: Data) -> Table:
    rows = [
        [
            SOURCES[key].title,
            f"{run['rate']:g}",
            *(f"{100 * last(run, name):.1f}" for name in READINGS),
            f"{last(run, 'loss'):.3f}",
            "taken" if run["rate"] == one["rate"] else "",
        ]
        for key, one in data.items()
        for run in one["sweep"]
    ]
    heads = ["data", "rate", "prior kept", "prior matched", "training loss", ""]
    note = "Taken is the rate whose better reading is highest; of level ones the lowest."
    return Table(f"FedAvg-LoRA: the learning rate, on seed {SWEEP_SEED}", heads, rows, note)


def _goals(found: Mapping[str, Any]) -> Table:
    said = {True: "met", False: "missed", None: "not measured"}
    rows = [[goal.words, goal.found, said[goal.met]] for goal in goals(found)]
    return Table("Goals", ["goal", "found", ""], rows)


def _spread(spread: Spread | None) -> str:
    """Shares as percent."""
    if spread is None:
        return NONE
    deviation = "" if spread.deviation is None else f" ± {100 * spread.deviation:.1f}"
    return f"{100 * spread.mean:.1f}{deviation}"


def _plain(spread: Spread | None) -> str:
    return NONE if spread is None else f"{spread.mean:.1f}"


def _number(value: float | str | None) -> str:
    return NONE if value is None else value if isinstance(value, str) else f"{value:,}"
