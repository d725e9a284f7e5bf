"""The results of the study as Markdown tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.convergence.settings import BASE, Plan, all_settings
from benchmarks.datasets import DATASETS
from benchmarks.tables import Table

HEADINGS = (
    *("data", "setting", "base", "last", "best", "late swing", "last, prior flat", "late swing"),
    *("last, prior matched", "late swing", "macro-F1", "bytes up a round"),
)
AXES = {
    "algorithm": "The algorithm",
    "groups": "Coefficient groups",
    "start": "Where λ starts",
    "layers": "The injected layers",
    "together": "Candidates for the default",
}


def collect(folder: Path, plan: Plan) -> dict[str, Any]:
    """Return all stored cells that ran under `plan`, by data set in the study's order, with a client's local steps before each row."""
    runs = []
    for key in DATASETS:
        for setting in all_settings():
            path = folder / "cells" / key / f"{setting.name}.json"
            if path.exists():
                run = json.loads(path.read_text(encoding="utf-8"))
                if run["plan"] == asdict(plan):
                    steps = setting.policy_for(plan).local_steps
                    runs.append(run | {"steps": [steps * row["round"] for row in run["rows"]]})
    return {"plan": asdict(plan), "runs": runs}


def markdown(results: Mapping[str, Any]) -> str:
    """Return a table for each axis, each above its plot; the base setting stands in every table."""
    sections = []
    for axis, title in AXES.items():
        runs = [run for run in results["runs"] if run["axis"] == axis or run["cell"] == BASE]
        if any(run["axis"] == axis for run in runs):
            table = Table(title, HEADINGS, [_row(run) for run in runs], text_columns=HEADINGS[:2]).markdown()
            sections.append(f"{table}\n\n![Accuracy against rounds and bytes: {title.lower()}](convergence-{axis}.png)")
    return "\n\n".join(sections)


def late_swing(rows: Sequence[Mapping[str, Any]], name: str = "accuracy") -> float:
    """Return the largest change between two consecutive evaluations in the second half of the rounds."""
    late = [float(row[name]) for row in rows[len(rows) // 2 :]]
    return max((abs(after - before) for before, after in pairwise(late)), default=0.0)


def _row(run: Mapping[str, Any]) -> list[str]:
    rows = run["rows"]
    bytes_up = (rows[-1]["bytes_up"] - rows[0]["bytes_up"]) / max(1, len(rows) - 1)
    starts_from_base = run["cell"] not in ("start-0.1", "published")
    return [
        DATASETS[run["data"]].title,
        run["title"],
        _percent(rows[0]["accuracy"]) if starts_from_base else "–",
        _percent(rows[-1]["accuracy"]),
        _percent(max(row["accuracy"] for row in rows[1:])),
        f"{100 * late_swing(rows):.1f}",
        *_reading(rows, "accuracy_without_prior"),
        *_reading(rows, "accuracy_prior_matched"),
        f"{100 * rows[-1]['macro_f1']:.1f}",
        f"{bytes_up:,.0f}",
    ]


def _reading(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[str, str]:
    """Return the last value and the late swing; dashes where the cell was run without this reading."""
    if any(name not in row for row in rows):
        return "–", "–"
    return _percent(rows[-1][name]), f"{100 * late_swing(rows, name):.1f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
