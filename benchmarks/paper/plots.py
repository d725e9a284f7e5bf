"""Accuracy against bytes, and figure 3 of the paper, drawn from our cells as PNG and SVG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.paper.methods import TITLES
from benchmarks.paper.summary import ENTRIES, Data, Entry, client_cost, shown_accuracy
from benchmarks.plotting import GRID_COLOUR, STYLE, save

WIDTH, HEIGHT = 4.6, 3.4  # inches of one panel
DESCRIPTIONS = {
    "paper-accuracy": "Accuracy against the bytes of one client, up and down, for each data set: every method in each of its readings",
    "paper-local": "Accuracy of the global coefficients and the mean of each client's own, by round, on the first texts of the test set",
}
COLOURS = {"published": "#2f6690", "ours": "#0b6e4f"}
GROUPS = {
    "second": "#0b6e4f",
    "head": "#5c8001",
    "embedding": "#7a3e9d",
    "lora": "#c8553d",
    "published": "#2f6690",
    "zero-shot": "#4a5568",
    "icl": "#8d6e63",
}
OTHERS = "#d49a00"  # of the first release
MARKERS = {"plain": "o", "matched": "s", "head": "D", "served": "o", "sums": "^", "gradient": "v"}


def draw(results: Mapping[str, Any], folder: Path) -> Iterator[Path]:
    """Plot accuracy against bytes, and global and local coefficients by round; yield the paths written."""
    data = results["data"]
    with mpl.rc_context(STYLE):
        for name, figure in (("paper-accuracy", _accuracy_figure(data)), ("paper-local", _local_figure(data))):
            if figure is not None:
                yield from save(figure, folder, name, DESCRIPTIONS[name])


def _accuracy_figure(data: Data) -> Figure | None:
    keys = [key for key, results in data.items() if any(shown_accuracy(results, entry) for entry in ENTRIES)]
    if not keys:
        return None
    figure = Figure(figsize=(WIDTH * len(keys), 1.4 * HEIGHT), layout="constrained")
    panels = figure.subplots(1, len(keys), squeeze=False)
    for panel, key in zip(panels[0], keys, strict=True):
        panel.set_xscale("log")
        for entry in ENTRIES:
            _plot_entry(panel, data[key], entry)
        panel.set_title(data[key]["title"])
        panel.set_xlabel("kB up and down, one client")
    return _finish(figure, panels.flat, panels[0], "accuracy on A+B, or on A where it alone was measured, %")


def _plot_entry(panel: Axes, results: Data, entry: Entry) -> None:
    """Plot the mean over the seeds at its bytes; a horizontal line where nothing is sent."""
    if (accuracy := shown_accuracy(results, entry)) is None:
        return
    colour = next((value for name, value in GROUPS.items() if entry.method.partition("-")[0] in name.partition("-")), OTHERS)
    costs = [cost for run in results["runs"][entry.method] if (cost := client_cost(run, entry.reading, results["wire"]))]
    if not costs:
        panel.axhline(100 * accuracy.mean, linestyle=":", color=colour, label=entry.title)
        return
    kilobytes = sum(cost.up + cost.down for cost in costs) / len(costs) / 1000
    size = 9 if entry.method == "second" else 5
    marker = MARKERS[entry.reading]
    panel.plot([kilobytes], [100 * accuracy.mean], marker, color=colour, markersize=size, label=entry.title)


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
        panel.set_title(data[key]["title"])
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
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(3, len(handles)), frameon=False)
    return figure
