"""Accuracy against rounds and against bytes, as PNG and SVG. Measures nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.convergence.report import AXES
from benchmarks.convergence.settings import BASE
from benchmarks.datasets import SOURCES
from benchmarks.plotting import GRID, STYLE, save

WIDTH, HEIGHT = 4.6, 3.4  # inches of one panel
COLOURS = ("#0b6e4f", "#c8553d", "#2f6690", "#8f6bb1", "#d49a00", "#5c8001", "#b23a6f", "#4a5568", "#00a0a0", "#7a4419")


def draw(found: Mapping[str, Any], folder: Path) -> Iterator[Path]:
    """One figure an axis: a column a data set, local steps above, bytes below. Yields the paths that were written."""
    with mpl.rc_context(STYLE):
        for axis in AXES:
            runs = [run for run in found["runs"] if run["axis"] == axis or run["cell"] == BASE]
            if not any(run["axis"] == axis for run in runs):
                continue
            yield from save(_figure(runs), folder, f"convergence-{axis}", f"{AXES[axis]}: accuracy against rounds and bytes")


def _figure(runs: list[Mapping[str, Any]]) -> Figure:
    keys = [key for key in SOURCES if any(run["data"] == key for run in runs)]
    figure = Figure(figsize=(WIDTH * len(keys), 2 * HEIGHT), layout="constrained")
    panels = figure.subplots(2, len(keys), squeeze=False)
    titles = list(dict.fromkeys(run["title"] for run in runs))
    for column, key in enumerate(keys):
        for run in (run for run in runs if run["data"] == key):
            rows = run["rows"]
            accuracy = [100 * row["accuracy"] for row in rows]
            look = {"color": COLOURS[titles.index(run["title"]) % len(COLOURS)], "linewidth": 2.2 if run["cell"] == BASE else 1.3}
            panels[0][column].plot(run["steps"], accuracy, label=run["title"], marker="o", markersize=2.5, **look)
            sent = [(row["bytes_up"] + row["bytes_down"]) / 1000 for row in rows]
            panels[1][column].plot(sent, accuracy, marker="o", markersize=2.5, **look)
        panels[0][column].set_title(SOURCES[key].title)
        panels[0][column].set_xlabel("local steps of a client")
        panels[1][column].set_xlabel("kB up and down, one client, context vector included")
        panels[1][column].set_xscale("log")
    for panel in panels.flat:
        panel.set_ylabel("accuracy, % of the test texts")
        panel.grid(color=GRID, linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)), frameon=False)
    return figure
