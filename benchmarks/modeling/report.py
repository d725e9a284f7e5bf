"""What was measured, as Markdown tables. Measures nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

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
    parts = (_speeds(found), _ceilings(found), _overheads(found), _options(found))
    return "\n\n".join("\n".join(part) for part in parts)


def _speeds(found: Mapping[str, Any]) -> Iterator[str]:
    yield "| model | data | step | ours | published, ms an example | ours, ms | ratio | goal |"
    yield "|---|---|---|---|---:|---:|---:|---:|"
    for run in found["runs"]:
        times = run["milliseconds"]
        for step, key, words, goal in ROWS:
            published, ours = times[f"{step} published"], times[key]
            cells = [
                run["model"],
                run["data"],
                step,
                words,
                f"{published:.1f}",
                f"{ours:.1f}",
                f"{published / ours:.1f}",
                f"{goal}",
            ]
            yield f"| {' | '.join(cells)} |"


def _ceilings(found: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "| model | data | float32, one text, G multiply-adds/s | ours, a batch, G multiply-adds/s "
        "| most: extraction, classification | most: calibration, four epochs |"
    )
    yield "|---|---|---:|---:|---:|---:|"
    for run in found["runs"]:
        most = run["ceilings"]
        rates = (f"{most[name]:.0f}" for name in ("published", "ours"))
        ratios = (f"{most[name]:.1f}" for name in ("extraction, classification", "calibration"))
        yield f"| {' | '.join([run['model'], run['data'], *rates, *ratios])} |"


def _overheads(found: Mapping[str, Any]) -> Iterator[str]:
    yield "| model | data | hooks | folded | the bare model against itself | 12 demonstrations, ms a text | injection, ms | ratio |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|"
    for run in found["runs"]:
        seen = run["overheads"]
        prompting, injecting = seen["few-shot ms"], seen["injection ms"]
        cells = [run["model"], run["data"], *(_share(seen[name]) for name in ("hooks", "folded", "itself"))]
        yield f"| {' | '.join([*cells, f'{prompting:.1f}', f'{injecting:.1f}', f'{prompting / injecting:.1f}'])} |"


def _options(found: Mapping[str, Any]) -> Iterator[str]:
    yield "| option, off / on | " + " | ".join(f"{run['model']}, {run['data']}" for run in found["runs"]) + " |"
    yield "|---|" + "---:|" * len(found["runs"])
    for name in dict.fromkeys(name for run in found["runs"] for name in run["options"]):
        yield f"| {name} | {' | '.join(_told(run['options'].get(name)) for run in found['runs'])} |"


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
