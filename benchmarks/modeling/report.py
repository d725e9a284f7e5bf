"""The measurements as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.tables import markdown_table

Runs = Sequence[Mapping[str, Any]]
ROWS = (
    ("extraction", "extraction ours", "all layers, as published", 10),
    ("extraction", "extraction ours, upper half", "a task's default layers", 10),
    ("calibration", "calibration ours, all layers", "all layers, as published", 8),
    ("calibration", "calibration ours, 1 epoch", "upper half, each example once", 8),
    ("calibration", "calibration ours, 4 epochs", "upper half, each example four times", 8),
    ("classification", "classification ours", "upper half", 10),
)


def markdown(results: Mapping[str, Any]) -> str:
    """Return tables of speeds, of the limits that the machine sets, of overheads and of options, for every run."""
    runs = results["runs"]
    return "\n\n".join((_speeds(runs), _limits(runs), _overheads(runs), _options(runs)))


def _speeds(runs: Runs) -> str:
    rows = []
    for run in runs:
        times = run["milliseconds"]
        for step, key, variant, goal in ROWS:
            published, ours = times[f"{step} published"], times[key]
            cells = (f"{value:.1f}" for value in (published, ours, published / ours))
            rows.append([run["model"], run["data"], step, variant, *cells, goal])
    headings = ["model", "data", "step", "ours", "published, ms an example", "ours, ms", "ratio", "goal"]
    return markdown_table(headings, rows, headings[:4])


def _limits(runs: Runs) -> str:
    rows = []
    for run in runs:
        limits = run["ceilings"]
        rates = (f"{limits[name]:.0f}" for name in ("published", "ours"))
        ratios = (f"{limits[name]:.1f}" for name in ("extraction, classification", "calibration"))
        rows.append([run["model"], run["data"], *rates, *ratios])
    headings = [
        "model",
        "data",
        "float32, one text, G multiply-adds/s",
        "ours, a batch, G multiply-adds/s",
        "most: extraction, classification",
        "most: calibration, four epochs",
    ]
    return markdown_table(headings, rows, headings[:2])


def _overheads(runs: Runs) -> str:
    rows = []
    for run in runs:
        overheads = run["overheads"]
        prompting, injecting = overheads["few-shot ms"], overheads["injection ms"]
        shares = (_share(overheads[name]) for name in ("hooks", "folded", "itself"))
        cells = (f"{value:.1f}" for value in (prompting, injecting, prompting / injecting))
        rows.append([run["model"], run["data"], *shares, *cells])
    headings = [
        "model",
        "data",
        "hooks",
        "folded",
        "the base model against itself",
        "12 demonstrations, ms a text",
        "injection, ms",
        "ratio",
    ]
    return markdown_table(headings, rows, headings[:2])


def _options(runs: Runs) -> str:
    names = dict.fromkeys(name for run in runs for name in run["options"])
    rows = [[name, *(_option(run["options"].get(name)) for run in runs)] for name in names]
    headings = ["option, off / on", *(f"{run['model']}, {run['data']}" for run in runs)]
    return markdown_table(headings, rows, headings[:1])


def _option(value: Any) -> str:
    """Return a ratio with its quartiles, megabytes before and after, a share, or that the option is not possible."""
    if isinstance(value, list) and len(value) == 3:
        low, middle, high = value
        return f"{middle:.2f} ({low:.2f} to {high:.2f})"
    if isinstance(value, list):
        return " → ".join(f"{size / 1e6:.0f} MB" for size in value)
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else "not possible"


def _share(quartiles: Any) -> str:
    if isinstance(quartiles, str):
        return "not possible"
    low, middle, high = (100 * share for share in quartiles)
    return f"{middle:+.1f} % ({low:+.1f} to {high:+.1f})"
