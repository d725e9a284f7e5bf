"""The results of the cells as Markdown tables, beside what the paper reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from statistics import mean
from typing import Any

from benchmarks.paper import reported
from benchmarks.paper.cost_tables import bytes_table, costs_table, task_parts_table
from benchmarks.paper.formatting import machine_name, number, one_decimal, percent
from benchmarks.paper.methods import LORA, SWEEP_SEED, TITLES, VARIANTS
from benchmarks.paper.summary import ENTRIES, MISSING, READINGS, Data, Entry, Spread, figures, goals, last, over_seeds
from benchmarks.paper.texts import BOTH, DEVELOPMENT, A, B
from benchmarks.tables import Table

SHOWN_BESIDE_VARIANTS = ("steps", "more-steps", "long", "lora")
SETS = (A, B, BOTH)


def markdown(results: Mapping[str, Any]) -> str:
    """Return every table, below a paragraph on the plan and the machines."""
    return "\n\n".join([_setup(results), *(table.markdown() for table in tables(results))])


def tables(results: Mapping[str, Any]) -> list[Table]:
    """Return every table for which something was measured."""
    data = results["data"]
    candidates = (
        _accuracy(data, (A,) if results.get("development") else SETS),
        costs_table(data),
        _goals(results),
        task_parts_table(data),
        bytes_table(data),
        _local(data, results["plan"]),
        _sweep(data),
        _variants(data),
    )
    return [
        replace(table, text_columns=("data", "method", "part", "chosen on", "goal", "result", ""))
        for table in candidates
        if table.rows
    ]


def _setup(results: Mapping[str, Any]) -> str:
    plan = results["plan"]
    seeds = max((len(runs) for data in results["data"].values() for runs in data["runs"].values()), default=0)
    if results.get("development"):
        texts = "development texts: training examples that no client has, for choices alone"
    else:
        half = plan["test"] // 2
        texts = f"{plan['test']} test examples: the first {half} (A), which earlier choices have read, and the others (B), which no choice reads"
    text = (
        f"{results['model']}; {plan['clients']} clients, Dirichlet {plan['alpha']}, {plan['training']} training examples, {texts}; "
        f"LoRA and first release: {plan['rounds']} rounds of {plan['local_steps']} steps of {plan['batch_size']} examples; "
        f"local coefficients on {plan['few']} texts, up to {seeds} seeds."
    )
    machines = [machine_name(machine) for machine in results["machines"]]
    return f"{text} Measured on {'; and on '.join(machines)}." if machines else text


def _accuracy(data: Data, sets: tuple[str, ...]) -> Table:
    rows = []
    for key, results in data.items():
        for entry in ENTRIES:
            if (first := over_seeds(results, entry, A, "accuracy")) is None:
                continue
            ours = [percent(over_seeds(results, entry, texts, name)) for name in ("accuracy", "macro_f1") for texts in sets]
            paper = [number(value) for value in _papers(entry, key)]
            rows.append([results["title"], entry.title, *ours, str(first.count), *paper])
    names = {A: DEVELOPMENT} if sets == (A,) else {texts: texts for texts in sets}
    measured = [f"{name} {names[texts]}, %" for name in ("accuracy", "macro-F1") for texts in sets]
    headings = ["data", "method", *measured, "seeds", "paper: accuracy", "paper: macro-F1"]
    note = "Mean ± standard deviation over the seeds. A dash under B: the cells are of the first release, which measured A alone."
    return Table("Accuracy", headings, rows, "" if sets == (A,) else note)


def _papers(entry: Entry, key: str) -> tuple[float | None, float | None]:
    """Return accuracy and macro-F1 that the paper reports of a method, beside its first reading."""
    method = "lora" if entry.method == "lora-8" else entry.method
    if entry.reading not in ("plain", "served") or entry.method == "lora" or key not in reported.ORDER:
        return None, None
    return reported.accuracy(method, key), reported.macro_f1(method, key)


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
            in_paper = method == "published" and key in reported.ORDER
            paper = reported.GAIN_OVER_LOCAL[reported.ORDER.index(key)] if in_paper else None
            rows.append([results["title"], TITLES[method], *cells, str(len(runs)), number(paper)])
    headings = ["data", "method", "global %", "mean of local %", "gain", "seeds", "paper: gain"]
    note = f"On the first {plan['few']} texts of the test set."
    return Table("Global coefficients and each client's own, after the last round", headings, rows, note)


def _sweep(data: Data) -> Table:
    rows = []
    for results in data.values():
        for run in results["sweep"]:
            method = run["method"]
            on, values = A, [last(run, name) for name in READINGS]
            if "readings" in run:
                on = DEVELOPMENT
                found = [figures(run, reading, on) for reading in ("plain", "matched")]
                values = [one["accuracy"] for one in found if one is not None]
            shown = [f"{100 * value:.1f}" for value in values] or [MISSING, MISSING]
            chosen = "chosen" if run["rate"] == results["rate"][method] else ""
            rows.append([results["title"], TITLES[method], f"{run['rate']:g}", on, *shown, f"{last(run, 'loss'):.3f}", chosen])
    headings = ["data", "method", "rate", "chosen on", "prior kept", "prior matched", "training loss", ""]
    note = (
        "The rate whose better reading is highest is chosen; of equal ones the lowest. On development texts no result is reported; the stored cells "
        "of the first release chose on texts A, which favours their LoRA there."
    )
    return Table(f"FedAvg-LoRA: the learning rate, on seed {SWEEP_SEED}", headings, rows, note)


def _variants(data: Data) -> Table:
    """Return the methods that were tried beside the comparison, with the rows that they differ from."""
    rows = []
    for results in data.values():
        runs = {run["method"]: run for method in TITLES for run in results["runs"][method] if run.get("seed") == SWEEP_SEED}
        if not set(VARIANTS) & set(runs):
            continue
        rows += [
            [results["title"], TITLES[method], *_course(runs[method])]
            for method in ("ours", *VARIANTS, *SHOWN_BESIDE_VARIANTS)
            if method in runs
        ]
    headings = ["data", "method", "rounds", "after half of them", "after all", "mean of the last three", "highest"]
    note = (
        "Accuracy in percent on texts A, on which the highest is chosen too; for LoRA in the reading that is better after all rounds. "
        "Half of the rounds is rounded down. A dash means that the version was not evaluated."
    )
    return Table(f"First release: what else was tried, on seed {SWEEP_SEED}", headings, rows, note)


def _course(run: Mapping[str, Any]) -> list[str]:
    """Return the number of rounds and the accuracies on the way through them, with a dash where a version was not evaluated."""
    reading = max(READINGS, key=lambda name: last(run, name)) if run["method"] in LORA else "accuracy"
    accuracy = {
        row["round"]: 100 * row[reading] for row in run["rows"] if row["round"] and reading in row
    }  # without the version it starts from
    count = max(accuracy)
    last_three = range(max(1, count - 2), count + 1)
    end = mean(accuracy[index] for index in last_three) if set(last_three) <= set(accuracy) else None
    values = accuracy.get(count // 2), accuracy[count], end, max(accuracy.values())
    return [str(count), *(MISSING if value is None else f"{value:.1f}" for value in values)]


def _goals(results: Mapping[str, Any]) -> Table:
    outcomes = {True: "met", False: "missed", None: "not measured"}
    rows = [[goal.data, goal.goal, goal.result, outcomes[goal.met]] for goal in goals(results)]
    return Table("Goals of ours", ["data", "goal", "result", ""], rows, "Means over the seeds.")
