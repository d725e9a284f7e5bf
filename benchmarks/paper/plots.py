"""Figures 2 and 3 of the paper, drawn from our cells as PNG and SVG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.datasets import DATASETS
from benchmarks.paper.methods import COMPARED, TITLES
from benchmarks.paper.summary import Data, bytes_until, over_seeds
from benchmarks.plotting import GRID_COLOUR, STYLE, save

WIDTH, HEIGHT = 4.6, 3.4  # inches of one panel
DESCRIPTIONS = {
    "paper-accuracy": "Accuracy by round and by bytes, for each data set and method: ours with the label prior matched, other methods with it kept",
    "paper-local": "Accuracy of the global coefficients and the mean of each client's own, by round, on the first texts of the test set",
}
COLOURS = {
    "zero-shot": "#4a5568",
    "icl": "#8d6e63",
    "lora": "#c8553d",
    "published": "#2f6690",
    "ours": "#0b6e4f",
    "steps": "#e07a9b",
    "more-steps": "#1f1f1f",
    "long": "#7a3e9d",
    "compact": "#d49a00",
    "compact-float16": "#00a0a0",
    "compact-int8": "#5c8001",
}


def draw(results: Mapping[str, Any], folder: Path) -> Iterator[Path]:
    """Plot accuracy by round and by bytes, and global and local coefficients by round; yield the paths written."""
    data = results["data"]
    with mpl.rc_context(STYLE):
        for name, figure in (("paper-accuracy", _accuracy_figure(data)), ("paper-local", _local_figure(data))):
            if figure is not None:
                yield from save(figure, folder, name, DESCRIPTIONS[name])


def _accuracy_figure(data: Data) -> Figure | None:
    keys = [key for key, results in data.items() if any("rows" in run for method in COMPARED for run in results["runs"][method])]
    if not keys:
        return None
    figure = Figure(figsize=(WIDTH * len(keys), 2 * HEIGHT), layout="constrained")
    panels = figure.subplots(2, len(keys), squeeze=False)
    for column, key in enumerate(keys):
        for method in COMPARED:
            _plot_method(panels[0][column], panels[1][column], data[key], method)
        panels[0][column].set_title(DATASETS[key].title)
        panels[0][column].set_xlabel("rounds")
        panels[1][column].set_xlabel("kB up and down, one client, all of HTTP")
        panels[1][column].set_xscale("log")
    return _finish(figure, panels.flat, panels[0], "accuracy, %")


def _plot_method(by_round: Axes, by_bytes: Axes, results: Data, method: str) -> None:
    """Plot a method's mean over the seeds; a horizontal line where it has no rounds."""
    if not (runs := results["runs"][method]):
        return
    style: dict[str, Any] = {"color": COLOURS[method], "linewidth": 2.2 if method == "ours" else 1.3, "label": TITLES[method]}
    spread = over_seeds(results, method, "accuracy")
    if "rows" not in runs[0]:
        assert spread is not None
        by_round.axhline(100 * spread.mean, linestyle=":", **style)
        return
    accuracy = mean_by_round(runs, "accuracy")
    by_round.plot(list(accuracy), list(accuracy.values()), marker="o", markersize=2.5, **style)
    if (counts := bytes_until(runs[0], results["wire"])) is not None:
        kilobytes = [count / 1000 for row, count in zip(runs[0]["rows"], counts, strict=True) if row["round"] in accuracy]
        by_bytes.plot(kilobytes, list(accuracy.values()), marker="o", markersize=2.5, **style)


def _local_figure(data: Data) -> Figure | None:
    runs_with_local = {
        key: {
            method: runs
            for method in ("published", "ours")
            if (runs := [run for run in results["runs"][method] if "local" in run["rows"][-1]])
        }
        for key, results in data.items()
    }
    keys = [key for key, methods in runs_with_local.items() if methods]
    if not keys:
        return None
    figure = Figure(figsize=(WIDTH * len(keys), HEIGHT), layout="constrained")
    panels = figure.subplots(1, len(keys), squeeze=False)
    for panel, key in zip(panels[0], keys, strict=True):
        for method, runs in runs_with_local[key].items():
            later = [{**run, "rows": run["rows"][1:]} for run in runs]
            for name, style in (("global", "-"), ("local", "--")):
                label = f"{TITLES[method]}, {'global' if name == 'global' else 'mean of local'}"
                mean = mean_by_round(later, name)
                panel.plot(list(mean), list(mean.values()), style, color=COLOURS[method], label=label, marker="o", markersize=2.5)
        panel.set_title(DATASETS[key].title)
        panel.set_xlabel("rounds")
    return _finish(figure, panels.flat, panels[0], "accuracy on the first test texts, %")


def mean_by_round(runs: Sequence[Mapping[str, Any]], name: str) -> dict[int, float]:
    """Return a value in percent by round, mean over the seeds, for the rounds that all of them have."""
    by_round = [{row["round"]: row[name] for row in run["rows"]} for run in runs]
    rounds = sorted(set.intersection(*(set(values) for values in by_round)))
    return {number: 100 * sum(values[number] for values in by_round) / len(by_round) for number in rounds}


def _finish(figure: Figure, panels: Iterator[Axes], labelled: Sequence[Axes], y_label: str) -> Figure:
    """Label the axes of all panels, and add one legend for the lines of the `labelled` ones."""
    for panel in panels:
        panel.set_ylabel(y_label)
        panel.grid(color=GRID_COLOUR, linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    handles: dict[str, Any] = {}
    for panel in labelled:
        handles |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, len(handles)), frameon=False)
    return figure
