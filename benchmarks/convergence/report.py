"""What the cells found, as Markdown tables. Measures nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.convergence.settings import BASE, Plan, cells
from benchmarks.datasets import SOURCES
from benchmarks.tables import Table

HEADS = (
    "data", "setting", "bare", "last", "best", "late swing", "last, prior flat", "late swing", "last, prior matched", "late swing", "macro-F1", "bytes up a round"
)  # fmt: skip
AXES = {
    "algorithm": "The algorithm",
    "groups": "Coefficient groups",
    "start": "Where λ starts",
    "layers": "The injected layers",
    "together": "Candidates for the default",
}


def collect(folder: Path, plan: Plan) -> dict[str, Any]:
    """All cells of a folder that ran under `plan`, in the study's order, data set by data set, with a client's steps before each row."""
    found = []
    for key in SOURCES:
        for cell in cells():
            path = folder / "cells" / key / f"{cell.name}.json"
            if path.exists():
                run = json.loads(path.read_text(encoding="utf-8"))
                if run["plan"] == asdict(plan):
                    each = cell.policy_for(plan).local_steps
                    found.append(run | {"steps": [each * row["round"] for row in run["rows"]]})
    return {"plan": asdict(plan), "runs": found}


def tables(found: Mapping[str, Any]) -> str:
    """A table for each axis; the base setting stands in each."""
    return "\n".join(line for axis, title in AXES.items() for line in _table(found["runs"], axis, title))


def page(found: Mapping[str, Any], folder: str) -> str:
    """The tables, each above its figure, which lies in `folder` as seen from the page."""
    parts = []
    for axis, title in AXES.items():
        if lines := list(_table(found["runs"], axis, title)):
            parts.append(
                "\n".join(lines) + f"\n![Accuracy against rounds and bytes: {title.lower()}]({folder}/convergence-{axis}.png)"
            )
    return "\n\n".join(parts)


def last(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    """The newest version's value."""
    return float(rows[-1][name])


def late_swing(rows: Sequence[Mapping[str, Any]], name: str = "accuracy") -> float:
    """The largest change between two consecutive evaluations in the second half of the rounds."""
    late = [float(row[name]) for row in rows[len(rows) // 2 :]]
    return max((abs(after - before) for before, after in pairwise(late)), default=0.0)


def _table(runs: Sequence[Mapping[str, Any]], axis: str, title: str) -> Iterator[str]:
    if not any(run["axis"] == axis for run in runs):
        return
    lines = []
    for run in (run for run in runs if run["axis"] == axis or run["cell"] == BASE):
        rows = run["rows"]
        up = (rows[-1]["bytes_up"] - rows[0]["bytes_up"]) / max(1, len(rows) - 1)
        lines.append(
            [
                SOURCES[run["data"]].title,
                run["title"],
                _percent(rows[0]["accuracy"]) if run["cell"] != "start-0.1" and run["cell"] != "published" else "–",
                _percent(last(rows, "accuracy")),
                _percent(max(row["accuracy"] for row in rows[1:])),
                f"{100 * late_swing(rows):.1f}",
                *_reading(rows, "accuracy_without_prior"),
                *_reading(rows, "accuracy_prior_matched"),
                f"{100 * last(rows, 'macro_f1'):.1f}",
                f"{up:,.0f}",
            ]
        )
    yield Table(title, HEADS, lines, wordy=HEADS[:2]).markdown()
    yield ""


def _reading(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[str, str]:
    """The last value and the late swing; dashes where the cell was run without it."""
    if any(name not in row for row in rows):
        return "–", "–"
    return _percent(last(rows, name)), f"{100 * late_swing(rows, name):.1f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
