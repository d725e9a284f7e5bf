"""The paper's figures 2 and 3 from our cells, as PNG and SVG. Measures nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.datasets import SOURCES
from benchmarks.paper.methods import COMPARED, TITLES
from benchmarks.paper.summary import Data, bytes_until, over_seeds
from benchmarks.plotting import GRID, STYLE, save

WIDTH, HEIGHT = 4.6, 3.4  # inches of one panel
WORDS = {
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


def draw(found: Mapping[str, Any], folder: Path) -> Iterator[Path]:
    """Accuracy by round and by bytes, and global against local coefficients by round. Yields the paths that were written."""
    data = found["data"]
    with mpl.rc_context(STYLE):
        for name, figure in (("paper-accuracy", _by_round(data)), ("paper-local", _local(data))):
            if figure is not None:
                yield from save(figure, folder, name, WORDS[name])


def _by_round(data: Data) -> Figure | None:
    keys = [key for key, one in data.items() if any("rows" in run for method in COMPARED for run in one["runs"][method])]
    if not keys:
        return None
    figure = Figure(figsize=(WIDTH * len(keys), 2 * HEIGHT), layout="constrained")
    panels = figure.subplots(2, len(keys), squeeze=False)
    for column, key in enumerate(keys):
        for method in COMPARED:
            _method(panels[0][column], panels[1][column], data[key], method)
        panels[0][column].set_title(SOURCES[key].title)
        panels[0][column].set_xlabel("rounds")
        panels[1][column].set_xlabel("kB up and down, one client, all of HTTP")
        panels[1][column].set_xscale("log")
    return _finished(figure, panels.flat, panels[0], "accuracy, %")


def _method(above: Axes, below: Axes, one: Data, method: str) -> None:
    """One method's mean over the seeds; a line across where it has no rounds."""
    if not (runs := one["runs"][method]):
        return
    look: dict[str, Any] = {"color": COLOURS[method], "linewidth": 2.2 if method == "ours" else 1.3, "label": TITLES[method]}
    spread = over_seeds(one, method, "accuracy")
    if "rows" not in runs[0]:
        assert spread is not None
        above.axhline(100 * spread.mean, linestyle=":", **look)
        return
    accuracy = mean_by_round(runs, "accuracy")
    above.plot(list(accuracy), list(accuracy.values()), marker="o", markersize=2.5, **look)
    if (sent := bytes_until(runs[0], one["wire"])) is not None:
        counts = [count / 1000 for row, count in zip(runs[0]["rows"], sent, strict=True) if row["round"] in accuracy]
        below.plot(counts, list(accuracy.values()), marker="o", markersize=2.5, **look)


def _local(data: Data) -> Figure | None:
    both = {
        key: {
            method: runs
            for method in ("published", "ours")
            if (runs := [run for run in one["runs"][method] if "local" in run["rows"][-1]])
        }
        for key, one in data.items()
    }
    keys = [key for key, methods in both.items() if methods]
    if not keys:
        return None
    figure = Figure(figsize=(WIDTH * len(keys), HEIGHT), layout="constrained")
    panels = figure.subplots(1, len(keys), squeeze=False)
    for panel, key in zip(panels[0], keys, strict=True):
        for method, runs in both[key].items():
            later = [{**run, "rows": run["rows"][1:]} for run in runs]
            for name, style in (("global", "-"), ("local", "--")):
                label = f"{TITLES[method]}, {'global' if name == 'global' else 'mean of local'}"
                mean = mean_by_round(later, name)
                panel.plot(list(mean), list(mean.values()), style, color=COLOURS[method], label=label, marker="o", markersize=2.5)
        panel.set_title(SOURCES[key].title)
        panel.set_xlabel("rounds")
    return _finished(figure, panels.flat, panels[0], "accuracy on the first test texts, %")


def mean_by_round(runs: Sequence[Mapping[str, Any]], name: str) -> dict[int, float]:
    """Percent by round, mean over the seeds, of the rounds that all of them have."""
    each = [{row["round"]: row[name] for row in run["rows"]} for run in runs]
    rounds = sorted(set.intersection(*(set(one) for one in each)))
    return {number: 100 * sum(one[number] for one in each) / len(each) for number in rounds}


def _finished(figure: Figure, panels: Iterator[Axes], named: Sequence[Axes], words: str) -> Figure:
    for panel in panels:
        panel.set_ylabel(words)
        panel.grid(color=GRID, linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    handles: dict[str, Any] = {}
    for panel in named:
        handles |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, len(handles)), frameon=False)
    return figure
