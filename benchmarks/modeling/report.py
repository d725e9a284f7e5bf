"""What was measured, as Markdown tables. Measures nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.tables import grid

Runs = Sequence[Mapping[str, Any]]
ROWS = (
    ("extraction", "extraction ours", "all layers, as published", 10),
    ("extraction", "extraction ours, upper half", "a task's default layers", 10),
    ("calibration", "calibration ours, all layers", "all layers, as published", 8),
    ("calibration", "calibration ours, 1 epoch", "upper half, each example once", 8),
    ("calibration", "calibration ours, 4 epochs", "upper half, each example four times", 8),
    ("classification", "classification ours", "upper half", 10),
)


def tables(found: Mapping[str, Any]) -> str:
    """Speeds, what the machine's products would allow, overheads and options of every run."""
    runs = found["runs"]
    return "\n\n".join((_speeds(runs), _ceilings(runs), _overheads(runs), _options(runs)))


def _speeds(runs: Runs) -> str:
    rows = []
    for run in runs:
        times = run["milliseconds"]
        for step, key, words, goal in ROWS:
            published, ours = times[f"{step} published"], times[key]
            told = (f"{value:.1f}" for value in (published, ours, published / ours))
            rows.append([run["model"], run["data"], step, words, *told, goal])
    heads = ["model", "data", "step", "ours", "published, ms an example", "ours, ms", "ratio", "goal"]
    return grid(heads, rows, heads[:4])


def _ceilings(runs: Runs) -> str:
    rows = []
    for run in runs:
        most = run["ceilings"]
        rates = (f"{most[name]:.0f}" for name in ("published", "ours"))
        ratios = (f"{most[name]:.1f}" for name in ("extraction, classification", "calibration"))
        rows.append([run["model"], run["data"], *rates, *ratios])
    heads = [
        "model",
        "data",
        "float32, one text, G multiply-adds/s",
        "ours, a batch, G multiply-adds/s",
        "most: extraction, classification",
        "most: calibration, four epochs",
    ]
    return grid(heads, rows, heads[:2])


def _overheads(runs: Runs) -> str:
    rows = []
    for run in runs:
        seen = run["overheads"]
        prompting, injecting = seen["few-shot ms"], seen["injection ms"]
        shares = (_share(seen[name]) for name in ("hooks", "folded", "itself"))
        told = (f"{value:.1f}" for value in (prompting, injecting, prompting / injecting))
        rows.append([run["model"], run["data"], *shares, *told])
    heads = [
        "model",
        "data",
        "hooks",
        "folded",
        "the bare model against itself",
        "12 demonstrations, ms a text",
        "injection, ms",
        "ratio",
    ]
    return grid(heads, rows, heads[:2])


def _options(runs: Runs) -> str:
    names = dict.fromkeys(name for run in runs for name in run["options"])
    rows = [[name, *(_told(run["options"].get(name)) for run in runs)] for name in names]
    heads = ["option, off / on", *(f"{run['model']}, {run['data']}" for run in runs)]
    return grid(heads, rows, heads[:1])


def _told(value: Any) -> str:
    """A ratio with its quartiles, megabytes before and after, a share, or a refusal."""
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
