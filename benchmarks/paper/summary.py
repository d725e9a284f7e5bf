"""Statistics over the cells, and the goals that they are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from statistics import mean, stdev
from typing import Any

from benchmarks.datasets import DATASETS
from benchmarks.paper import reported
from benchmarks.paper.methods import COMPARED, LORA, SWEEP_SEED, TITLES

METHODS_WITH_GOALS = ("ours", "steps", "more-steps", "long")
METHODS_WITH_SIZE_GOALS = ("compact-float16", "compact-int8")
READINGS = ("accuracy_plain", "accuracy_prior_matched")
MISSING = "–"
TARGET_SHARE = 0.95  # of the best accuracy
Data = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and sample standard deviation over the seeds; the deviation is None for one seed."""

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Return the spread of these values, or None if there are none."""
        if not values:
            return None
        return cls(mean(values), stdev(values) if len(values) > 1 else None, len(values))


def last(run: Mapping[str, Any], name: str) -> float:
    """Return a value after the last round."""
    return float(run["rows"][-1][name] if "rows" in run else run[name])


def most_common_machine(data: Mapping[str, Data]) -> Mapping[str, Any] | None:
    """Return the machine that most cells of the comparison with rounds ran on; seconds of different machines are not averaged."""
    runs = [run for results in data.values() for method in COMPARED for run in results["runs"][method] if "rows" in run]
    machines = [run["machine"] for run in runs if run.get("machine")]
    return max(machines, key=machines.count, default=None)


def over_seeds(data: Data, method: str, name: str) -> Spread | None:
    """Return the spread of a value after the last round over the seeds."""
    return Spread.of([last(run, name) for run in data["runs"][method]])


def gap_to_lora(data: Data, method: str, reading: str, rival: str = "lora") -> float | None:
    """Return a method's accuracy minus LoRA's in one reading, mean over the seeds that both have."""
    lora = {run["seed"]: last(run, reading) for run in data["runs"][rival]}
    gaps = [last(run, "accuracy") - lora[run["seed"]] for run in data["runs"][method] if run["seed"] in lora]
    return mean(gaps) if gaps else None


def target(data: Data) -> float:
    """Return 95 % of the best mean accuracy that any method of the comparison has after its last round."""
    spreads = [spread.mean for method in COMPARED if (spread := over_seeds(data, method, "accuracy"))]
    return TARGET_SHARE * max(spreads)


def first_seconds(run: Mapping[str, Any]) -> float:
    """Return one client's seconds before the first round."""
    return float(run.get("context_seconds", 0.0) + run.get("kept_seconds", 0.0))


def seconds_until(run: Mapping[str, Any]) -> list[float]:
    """Return one client's seconds up to each row, with those before the first round."""
    return [first_seconds(run) + seconds for seconds in accumulate(row["seconds"] for row in run["rows"])]


def bytes_until(run: Mapping[str, Any], wire: Mapping[str, Any] | None) -> list[int] | None:
    """Return one client's bytes on the wire, up and down, up to each row; None where they were not counted."""
    if wire is None or run["method"] not in wire:
        return None
    parts = wire[run["method"]]
    start = sum(sum(parts[name].values()) for name in ("joining", "context") if name in parts)
    return [start + row["round"] * sum(parts["round"].values()) for row in run["rows"]]


def byte_ratio_a_round(wire: Mapping[str, Any], method: str) -> float | None:
    """Return the bytes of LoRA's round over those of a method's, up and down together; None where LoRA does not fit the model."""
    if "lora" not in wire:
        return None
    lora, own = (sum(wire[name]["round"].values()) for name in ("lora", method))
    return float(lora / own)


def byte_ratio_in_all(data: Data, method: str) -> float | None:
    """Return the same for all bytes: joining, the context vector, the rounds and the evaluation; None unless both methods ran.

    LoRA has rounds alone: no first download and no evaluation.
    """
    wire, runs = data["wire"], data["runs"]
    both = [bytes_until(runs[name][0], wire) for name in ("lora", method) if runs[name]]
    if len(both) < 2 or both[0] is None or both[1] is None:
        return None
    return float(both[0][-1] / (both[1][-1] + sum(wire[method].get("evaluation", {}).values())))


def first_row_reaching(run: Mapping[str, Any], accuracy: float) -> int | None:
    """Return the index of the first row of at least this accuracy, or None."""
    return next((index for index, row in enumerate(run["rows"]) if row["accuracy"] >= accuracy), None)


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal for a method on a data set; `met` is None where it was not measured."""

    data: str
    method: str
    goal: str
    result: str
    met: bool | None


def goals(results: Mapping[str, Any]) -> list[Goal]:
    """Return every goal of `METHODS_WITH_GOALS` and `METHODS_WITH_SIZE_GOALS`, by data set."""
    collected: list[Goal] = []
    for key, data in results["data"].items():
        collected += (goal for method in METHODS_WITH_GOALS for goal in _method_goals(key, data, method))
        collected += (_size_goal(key, data["wire"], method) for method in METHODS_WITH_SIZE_GOALS if data["wire"] is not None)
    return collected


def _size_goal(key: str, wire: Mapping[str, Any], method: str) -> Goal:
    size = wire[method]["bodies"]["update"] if method in wire else None
    result, met = (MISSING, None) if size is None else (f"{size:,} bytes", size <= 1800)
    return Goal(DATASETS[key].title, TITLES[method], "update bodies of at most 1,800 bytes", result, met)


def _method_goals(key: str, data: Data, method: str) -> Iterator[Goal]:
    ours, paper = over_seeds(data, method, "accuracy"), reported.accuracy("published", key)
    if ours is None or paper is None:
        return
    goal = partial(Goal, DATASETS[key].title, TITLES[method])
    within = 3 if key == "agnews" else 0
    text = f"accuracy within {within} points of the paper's 8B" if within else "accuracy above the paper's 8B"
    above = _points(ours.mean) - paper
    met = round(above, 6) >= -within if within else round(above, 6) > 0
    yield goal(text, f"{100 * ours.mean:.1f} against {paper}", met)
    for rival in LORA:
        runs = data["runs"][rival]
        if rival == "lora" or (runs and _length(runs[0]) == _length(data["runs"][method][0])):
            yield goal(*_lora_goal(data, method, rival))
    if (wire := data["wire"]) is not None and method in wire:
        for scope, ratio in (("a round", byte_ratio_a_round(wire, method)), ("in all", byte_ratio_in_all(data, method))):
            result, fewer = (MISSING, None) if ratio is None else (f"{ratio:.0f} times", ratio >= 100)
            yield goal(f"100 times fewer bytes {scope} than FedAvg-LoRA", result, fewer)


def _points(share: float) -> float:
    """Return percent without the floating-point error of a mean of shares, so that two points are two points."""
    return round(100 * share, 6)


def _lora_goal(data: Data, method: str, rival: str) -> tuple[str, str, bool | None]:
    """Compare with the better of LoRA's two readings, over the seeds that both have; return the goal, the result and whether it is met."""
    gaps = [gap_to_lora(data, method, reading, rival) for reading in READINGS]
    gap = min((_points(value) for value in gaps if value is not None), default=None)
    if rival == "lora":
        text = "at most 2 points below tuned FedAvg-LoRA"
    else:
        text = f"at most 2 points below {TITLES[rival]}, on seed {SWEEP_SEED} alone, its rate that of fewer steps"
    if gap is None:
        return text, MISSING, None
    own, other = (_length(data["runs"][name][0]) for name in (method, rival))
    fewer = [f"{other[unit]} {unit} where this has {own[unit]}" for unit in own if own[unit] != other[unit]]
    return text + (f", which is given {' and '.join(fewer)}" if fewer else ""), f"{gap:+.1f} points", gap >= -2


def _length(run: Mapping[str, Any]) -> dict[str, int]:
    """Return the length of a run: its rounds, and the local steps of each."""
    return {"rounds": run["rows"][-1]["round"], "steps a round": run["setting"]["policy"]["local_steps"]}
