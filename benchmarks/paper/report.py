"""The results of the cells as Markdown tables, beside what the paper reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from statistics import mean
from typing import Any

from benchmarks.datasets import DATASETS
from benchmarks.paper import reported
from benchmarks.paper.cost_tables import RATIO_IN_ALL, bytes_table, seconds_table
from benchmarks.paper.formatting import integer, machine_name, number, one_decimal, percent
from benchmarks.paper.methods import COMPARED, LORA, SWEEP_SEED, TITLES, VARIANTS
from benchmarks.paper.summary import MISSING, READINGS, Data, Spread, byte_ratio_in_all, goals, last, over_seeds
from benchmarks.tables import Table

SHOWN_BESIDE_VARIANTS = ("steps", "more-steps", "long", "lora")


def markdown(results: Mapping[str, Any]) -> str:
    """Return every table, below a paragraph on the plan and the machines."""
    return "\n\n".join([_setup(results), *(table.markdown() for table in tables(results))])


def tables(results: Mapping[str, Any]) -> list[Table]:
    """Return every table for which something was measured."""
    data = results["data"]
    candidates = (
        _accuracy(data),
        bytes_table(data),
        seconds_table(data),
        _local(data, results["plan"]),
        _sweep(data),
        _variants(data),
        _goals(results),
    )
    return [replace(table, text_columns=("data", "method", "goal", "result", "")) for table in candidates if table.rows]


def _setup(results: Mapping[str, Any]) -> str:
    plan = results["plan"]
    seeds = max((len(runs) for data in results["data"].values() for runs in data["runs"].values()), default=0)
    text = (
        f"{results['model']}; {plan['clients']} clients, Dirichlet {plan['alpha']}, {plan['training']} training and {plan['test']} test examples, "
        f"{plan['rounds']} rounds of {plan['local_steps']} steps of {plan['batch_size']} examples, local coefficients on {plan['few']} texts, up to {seeds} seeds."
    )
    machines = [machine_name(machine) for machine in results["machines"]]
    return f"{text} Measured on {'; and on '.join(machines)}." if machines else text


def _accuracy(data: Data) -> Table:
    rows = []
    for key, results in data.items():
        for method in COMPARED:
            if (accuracy := over_seeds(results, method, "accuracy")) is None:
                continue
            readings = [None if method == "icl" else over_seeds(results, method, name) for name in READINGS]
            ours = map(percent, (accuracy, over_seeds(results, method, "macro_f1"), *readings))
            paper = [number(value(method, key)) for value in (reported.accuracy, reported.macro_f1)]
            rows.append([DATASETS[key].title, TITLES[method], *ours, str(accuracy.count), *paper])
    headings = [
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
    return Table("Accuracy after the last round", headings, rows)


def _local(data: Data, plan: Mapping[str, Any]) -> Table:
    rows = []
    for key, results in data.items():
        for method in ("published", "ours"):
            runs = [run for run in results["runs"][method] if "local" in run["rows"][-1]]
            if not runs:
                continue
            both = {name: [100 * run["rows"][-1][name] for run in runs] for name in ("global", "local")}
            gains = [after - alone for after, alone in zip(both["global"], both["local"], strict=True)]
            cells = [one_decimal(Spread.of(values)) for values in (both["global"], both["local"], gains)]
            paper = reported.GAIN_OVER_LOCAL[reported.ORDER.index(key)] if method == "published" else None
            rows.append([DATASETS[key].title, TITLES[method], *cells, str(len(runs)), number(paper)])
    headings = ["data", "method", "global %", "mean of local %", "gain", "seeds", "paper: gain"]
    note = f"On the first {plan['few']} texts of the test set."
    return Table("Global coefficients and each client's own, after the last round", headings, rows, note)


def _sweep(data: Data) -> Table:
    rows = [
        [
            DATASETS[key].title,
            f"{run['rate']:g}",
            *(f"{100 * last(run, name):.1f}" for name in READINGS),
            f"{last(run, 'loss'):.3f}",
            "chosen" if run["rate"] == results["rate"] else "",
        ]
        for key, results in data.items()
        for run in results["sweep"]
    ]
    headings = ["data", "rate", "prior kept", "prior matched", "training loss", ""]
    note = "The rate whose better reading is highest is chosen; of equal ones the lowest."
    return Table(f"FedAvg-LoRA: the learning rate, on seed {SWEEP_SEED}", headings, rows, note)


def _variants(data: Data) -> Table:
    """Return the methods that were tried beside the comparison, with the rows that they differ from."""
    rows = []
    for key, results in data.items():
        runs = {run["method"]: run for method in TITLES for run in results["runs"][method] if run.get("seed") == SWEEP_SEED}
        if not set(VARIANTS) & set(runs):
            continue
        rows += [
            [DATASETS[key].title, TITLES[method], *_course(runs[method]), integer(byte_ratio_in_all(results, method))]
            for method in ("ours", *VARIANTS, *SHOWN_BESIDE_VARIANTS)
            if method in runs
        ]
    headings = ["data", "method", "rounds", "after half of them", "after all", "mean of the last three", "highest", RATIO_IN_ALL]
    note = (
        "Accuracy in percent on the test texts, on which the highest is chosen too; for LoRA in the reading that is better after all rounds. "
        "Half of the rounds is rounded down. A dash means that the version was not evaluated."
    )
    return Table(f"What else was tried, on seed {SWEEP_SEED}", headings, rows, note)


def _course(run: Mapping[str, Any]) -> list[str]:
    """Return the number of rounds and the accuracies on the way through them, with a dash where a version was not evaluated."""
    reading = max(READINGS, key=lambda name: last(run, name)) if run["method"] in LORA else "accuracy"
    accuracy = {row["round"]: 100 * row[reading] for row in run["rows"] if row["round"]}  # without the version it starts from
    count = max(accuracy)
    last_three = range(max(1, count - 2), count + 1)
    end = mean(accuracy[index] for index in last_three) if set(last_three) <= set(accuracy) else None
    values = accuracy.get(count // 2), accuracy[count], end, max(accuracy.values())
    return [str(count), *(MISSING if value is None else f"{value:.1f}" for value in values)]


def _goals(results: Mapping[str, Any]) -> Table:
    outcomes = {True: "met", False: "missed", None: "not measured"}
    rows = [[goal.data, goal.method, goal.goal, goal.result, outcomes[goal.met]] for goal in goals(results)]
    return Table("Goals", ["data", "method", "goal", "result", ""], rows)
