"""Plots of accuracy against local steps and against bytes, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.convergence.report import AXES
from benchmarks.convergence.settings import BASE
from benchmarks.datasets import DATASETS
from benchmarks.plotting import GRID_COLOUR, STYLE, save

WIDTH, HEIGHT = 4.6, 3.4  # inches of one panel
COLOURS = ("#0b6e4f", "#c8553d", "#2f6690", "#8f6bb1", "#d49a00", "#5c8001", "#b23a6f", "#4a5568", "#00a0a0", "#7a4419")


def draw(results: Mapping[str, Any], folder: Path) -> Iterator[Path]:
    """Draw one figure for each axis, with a column for each data set, and yield the paths written."""
    with mpl.rc_context(STYLE):
        for axis in AXES:
            runs = [run for run in results["runs"] if run["axis"] == axis or run["cell"] == BASE]
            if not any(run["axis"] == axis for run in runs):
                continue
            yield from save(_figure(runs), folder, f"convergence-{axis}", f"{AXES[axis]}: accuracy against rounds and bytes")


def _figure(runs: list[Mapping[str, Any]]) -> Figure:
    keys = [key for key in DATASETS if any(run["data"] == key for run in runs)]
    figure = Figure(figsize=(WIDTH * len(keys), 2 * HEIGHT), layout="constrained")
    panels = figure.subplots(2, len(keys), squeeze=False)
    titles = list(dict.fromkeys(run["title"] for run in runs))
    for column, key in enumerate(keys):
        for run in (run for run in runs if run["data"] == key):
            rows = run["rows"]
            accuracy = [100 * row["accuracy"] for row in rows]
            style = {"color": COLOURS[titles.index(run["title"]) % len(COLOURS)], "linewidth": 2.2 if run["cell"] == BASE else 1.3}
            panels[0][column].plot(run["steps"], accuracy, label=run["title"], marker="o", markersize=2.5, **style)
            kilobytes = [(row["bytes_up"] + row["bytes_down"]) / 1000 for row in rows]
            panels[1][column].plot(kilobytes, accuracy, marker="o", markersize=2.5, **style)
        panels[0][column].set_title(DATASETS[key].title)
        panels[0][column].set_xlabel("local steps of a client")
        panels[1][column].set_xlabel("kB up and down, one client, context vector included")
        panels[1][column].set_xscale("log")
    for panel in panels.flat:
        panel.set_ylabel("accuracy, % of the test texts")
        panel.grid(color=GRID_COLOUR, linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)
    return figure
