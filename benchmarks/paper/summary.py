"""The figures that tables are made of, out of the cells, and the goals. Measures nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from statistics import mean, stdev
from typing import Any

from benchmarks.datasets import SOURCES
from benchmarks.paper import reported
from benchmarks.paper.methods import COMPARED, LORA, SWEEP_SEED, TITLES

CLAIMING = ("ours", "steps", "more-steps", "long")  # the methods that the goals are held against
SMALL = ("compact-float16", "compact-int8")  # those whose bodies are to be small
READINGS = ("accuracy_plain", "accuracy_prior_matched")
NONE = "–"
NEAR = 0.95  # of the best accuracy
Data = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and sample standard deviation over the seeds; the latter None for one seed alone."""

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Of no values there is none."""
        if not values:
            return None
        return cls(mean(values), stdev(values) if len(values) > 1 else None, len(values))


def last(run: Mapping[str, Any], name: str) -> float:
    """After the last round."""
    return float(run["rows"][-1][name] if "rows" in run else run[name])


def usual_machine(data: Mapping[str, Data]) -> Mapping[str, Any] | None:
    """What more cells of the comparison that have rounds ran on than on any other; seconds of different machines do not go into one mean."""
    runs = [run for one in data.values() for method in COMPARED for run in one["runs"][method] if "rows" in run]
    told = [run["machine"] for run in runs if run.get("machine")]
    return max(told, key=told.count, default=None)


def over_seeds(data: Data, method: str, name: str) -> Spread | None:
    """A figure after the last round."""
    return Spread.of([last(run, name) for run in data["runs"][method]])


def above_lora(data: Data, method: str, way: str, rival: str = "lora") -> float | None:
    """How far a method's accuracy is above a reading of LoRA's, mean over the seeds that both have."""
    lora = {run["seed"]: last(run, way) for run in data["runs"][rival]}
    gaps = [last(run, "accuracy") - lora[run["seed"]] for run in data["runs"][method] if run["seed"] in lora]
    return mean(gaps) if gaps else None


def target(data: Data) -> float:
    """95 % of the best mean accuracy that any method of the comparison has after its last round."""
    found = [spread.mean for method in COMPARED if (spread := over_seeds(data, method, "accuracy"))]
    return NEAR * max(found)


def first_seconds(run: Mapping[str, Any]) -> float:
    """One client's seconds before the first round."""
    return float(run.get("context_seconds", 0.0) + run.get("kept_seconds", 0.0))


def seconds_until(run: Mapping[str, Any]) -> list[float]:
    """One client's seconds at each row: the beginning and all rounds up to there."""
    return [first_seconds(run) + spent for spent in accumulate(row["seconds"] for row in run["rows"])]


def bytes_until(run: Mapping[str, Any], wire: Mapping[str, Any] | None) -> list[int] | None:
    """One client's bytes up and down on the wire at each row; None where they were not measured."""
    if wire is None or run["method"] not in wire:
        return None
    parts = wire[run["method"]]
    begin = sum(sum(parts[name].values()) for name in ("joining", "context") if name in parts)
    return [begin + row["round"] * sum(parts["round"].values()) for row in run["rows"]]


def times_fewer(wire: Mapping[str, Any], method: str) -> float | None:
    """How many times a method's round goes into LoRA's, up and down together; None where LoRA does not fit the model."""
    if "lora" not in wire:
        return None
    whole, part = (sum(wire[name]["round"].values()) for name in ("lora", method))
    return float(whole / part)


def times_fewer_in_all(data: Data, method: str) -> float | None:
    """The same of everything a client sends and receives: joining, the context vector and the evaluation too; None unless both ran.

    LoRA has rounds alone: no first download, no evaluation.
    """
    wire, runs = data["wire"], data["runs"]
    both = [bytes_until(runs[name][0], wire) for name in ("lora", method) if runs[name]]
    if len(both) < 2 or both[0] is None or both[1] is None:
        return None
    return both[0][-1] / (both[1][-1] + sum(wire[method].get("evaluation", {}).values()))


def reached(run: Mapping[str, Any], accuracy: float) -> int | None:
    """The first row of at least this accuracy."""
    return next((place for place, row in enumerate(run["rows"]) if row["accuracy"] >= accuracy), None)


@dataclass(frozen=True, slots=True)
class Goal:
    """One promise to a method on a data set; `met` is None where it was not measured."""

    data: str
    method: str
    words: str
    found: str
    met: bool | None


def goals(found: Mapping[str, Any]) -> list[Goal]:
    """Every goal, data set by data set, of the methods in `CLAIMING` and of the compact bodies."""
    made: list[Goal] = []
    for key, data in found["data"].items():
        made += (goal for method in CLAIMING for goal in _of_method(key, data, method))
        made += (_of_body(key, data["wire"], method) for method in SMALL if data["wire"] is not None)
    return made


def _of_body(key: str, wire: Mapping[str, Any], method: str) -> Goal:
    body = wire[method]["bodies"]["update"] if method in wire else None
    said, met = (NONE, None) if body is None else (f"{body:,} bytes", body <= 1800)
    return Goal(SOURCES[key].title, TITLES[method], "update bodies of at most 1,800 bytes", said, met)


def _of_method(key: str, data: Data, method: str) -> Iterator[Goal]:
    ours, paper = over_seeds(data, method, "accuracy"), reported.accuracy("published", key)
    if ours is None or paper is None:
        return
    goal = partial(Goal, SOURCES[key].title, TITLES[method])
    within = 3 if key == "agnews" else 0
    words = f"accuracy within {within} points of the paper's 8B" if within else "accuracy above the paper's 8B"
    above = _points(ours.mean) - paper
    met = round(above, 6) >= -within if within else round(above, 6) > 0
    yield goal(words, f"{100 * ours.mean:.1f} against {paper}", met)
    for rival in LORA:
        runs = data["runs"][rival]
        if rival == "lora" or (runs and _given(runs[0]) == _given(data["runs"][method][0])):
            yield goal(*_near_lora(data, method, rival))
    if (wire := data["wire"]) is not None and method in wire:
        for words, times in (("a round", times_fewer(wire, method)), ("in all", times_fewer_in_all(data, method))):
            said, fewer = (NONE, None) if times is None else (f"{times:.0f} times", times >= 100)
            yield goal(f"100 times fewer bytes {words} than FedAvg-LoRA", said, fewer)


def _points(share: float) -> float:
    """Percent, without what a mean of shares leaves in the last digits: two points are two points."""
    return round(100 * share, 6)


def _near_lora(data: Data, method: str, rival: str) -> tuple[str, str, bool | None]:
    """Against the better of LoRA's two readings, over the seeds that both have: the goal, what was found, whether it is met."""
    ways = [above_lora(data, method, way, rival) for way in READINGS]
    gap = min((_points(way) for way in ways if way is not None), default=None)
    if rival == "lora":
        words = "at most 2 points below tuned FedAvg-LoRA"
    else:
        words = f"at most 2 points below {TITLES[rival]}, on seed {SWEEP_SEED} alone, its rate that of fewer steps"
    if gap is None:
        return words, NONE, None
    mine, theirs = (_given(data["runs"][one][0]) for one in (method, rival))
    less = [f"{theirs[unit]} {unit} where this has {mine[unit]}" for unit in mine if mine[unit] != theirs[unit]]
    return words + (f", which is given {' and '.join(less)}" if less else ""), f"{gap:+.1f} points", gap >= -2


def _given(run: Mapping[str, Any]) -> dict[str, int]:
    """How long a run was."""
    return {"rounds": run["rows"][-1]["round"], "steps a round": run["setting"]["policy"]["local_steps"]}
