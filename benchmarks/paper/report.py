"""What the cells found, as Markdown tables beside what the paper reports. Measures nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from statistics import mean
from typing import Any

from benchmarks.datasets import SOURCES
from benchmarks.paper import reported
from benchmarks.paper.cost_tables import LORA_IN_ALL, bytes_table, seconds_table
from benchmarks.paper.formatting import number, one_decimal, percent, ran_on, whole
from benchmarks.paper.methods import COMPARED, LORA, SWEEP_SEED, TITLES, TRIED
from benchmarks.paper.summary import NONE, READINGS, Data, Spread, goals, last, over_seeds, times_fewer_in_all
from benchmarks.tables import Table

BESIDE_TRIED = ("steps", "more-steps", "long", "lora")  # what stands below what was tried, to hold it against


def markdown(found: Mapping[str, Any]) -> str:
    """Every table, with what was run and where before them."""
    return "\n\n".join([_machine(found), *(one.markdown() for one in tables(found))])


def tables(found: Mapping[str, Any]) -> list[Table]:
    """Every table for which something was measured."""
    data = found["data"]
    made = (
        _accuracy(data),
        bytes_table(data),
        seconds_table(data),
        _local(data, found["plan"]),
        _sweep(data),
        _tried(data),
        _goals(found),
    )
    return [replace(one, wordy=("data", "method", "goal", "found", "")) for one in made if one.rows]


def _machine(found: Mapping[str, Any]) -> str:
    plan = found["plan"]
    seeds = max((len(runs) for one in found["data"].values() for runs in one["runs"].values()), default=0)
    words = (
        f"{found['model']}; {plan['clients']} clients, Dirichlet {plan['alpha']}, {plan['training']} training and {plan['test']} test examples, "
        f"{plan['rounds']} rounds of {plan['local_steps']} steps of {plan['batch_size']} examples, local coefficients on {plan['few']} texts, up to {seeds} seeds."
    )
    told = [ran_on(one) for one in found["machines"]]
    return f"{words} Measured on {'; and on '.join(told)}." if told else words


def _accuracy(data: Data) -> Table:
    rows = []
    for key, one in data.items():
        for method in COMPARED:
            if (accuracy := over_seeds(one, method, "accuracy")) is None:
                continue
            ways = [None if method == "icl" else over_seeds(one, method, name) for name in READINGS]
            told = map(percent, (accuracy, over_seeds(one, method, "macro_f1"), *ways))
            paper = [number(figure(method, key)) for figure in (reported.accuracy, reported.macro_f1)]
            rows.append([SOURCES[key].title, TITLES[method], *told, str(accuracy.count), *paper])
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


def _local(data: Data, plan: Mapping[str, Any]) -> Table:
    rows = []
    for key, one in data.items():
        for method in ("published", "ours"):
            runs = [run for run in one["runs"][method] if "local" in run["rows"][-1]]
            if not runs:
                continue
            both = {name: [100 * run["rows"][-1][name] for run in runs] for name in ("global", "local")}
            gains = [after - alone for after, alone in zip(both["global"], both["local"], strict=True)]
            told = [one_decimal(Spread.of(values)) for values in (both["global"], both["local"], gains)]
            paper = reported.GAIN_OVER_LOCAL[reported.ORDER.index(key)] if method == "published" else None
            rows.append([SOURCES[key].title, TITLES[method], *told, str(len(runs)), number(paper)])
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


def _tried(data: Data) -> Table:
    """What else might have won, beside the rows that it differs from."""
    rows = []
    for key, one in data.items():
        runs = {run["method"]: run for method in TITLES for run in one["runs"][method] if run.get("seed") == SWEEP_SEED}
        if not set(TRIED) & set(runs):
            continue
        rows += [
            [SOURCES[key].title, TITLES[method], *_course(runs[method]), whole(times_fewer_in_all(one, method))]
            for method in ("ours", *TRIED, *BESIDE_TRIED)
            if method in runs
        ]
    heads = ["data", "method", "rounds", "after half of them", "after all", "mean of the last three", "highest", LORA_IN_ALL]
    note = (
        "Accuracy in percent on the test texts, by which the highest is chosen too; of LoRA the reading that is the better one after all rounds. "
        "Half of the rounds is rounded down. Nothing stands where a version was not read."
    )
    return Table(f"What else was tried, on seed {SWEEP_SEED}", heads, rows, note)


def _course(run: Mapping[str, Any]) -> list[str]:
    """The number of rounds, and accuracy on the way through them; none where a version was not read."""
    way = max(READINGS, key=lambda name: last(run, name)) if run["method"] in LORA else "accuracy"
    read = {row["round"]: 100 * row[way] for row in run["rows"] if row["round"]}  # not what it starts from
    count = max(read)
    three = range(max(1, count - 2), count + 1)
    end = mean(read[each] for each in three) if set(three) <= set(read) else None
    told = read.get(count // 2), read[count], end, max(read.values())
    return [str(count), *(NONE if each is None else f"{each:.1f}" for each in told)]


def _goals(found: Mapping[str, Any]) -> Table:
    said = {True: "met", False: "missed", None: "not measured"}
    rows = [[goal.data, goal.method, goal.words, goal.found, said[goal.met]] for goal in goals(found)]
    return Table("Goals", ["data", "method", "goal", "found", ""], rows)
