"""Statistics over the cells, and the goals that they are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import mean, stdev
from typing import Any

from benchmarks.datasets import DATASETS
from benchmarks.paper.methods import COMPARED, SECOND_VARIANTS, TASKS, TITLES
from benchmarks.paper.texts import BOTH, A

READINGS = ("accuracy_plain", "accuracy_prior_matched")
MISSING = "–"
ACCURACY_GOALS = {"subj": 93.4, "agnews": 90.5, "emoc": 82.0}  # percent on A+B
BODY_GOALS = {2: 2300, 4: 4000}  # bytes of the largest body that a client sends in a round, by the number of labels
SECONDS_GOAL = 10  # times fewer core-seconds than FedAvg-LoRA
Data = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """A method in one of its readings: a row of the tables."""

    method: str
    reading: str
    title: str


def _entries() -> Iterator[Entry]:
    yield Entry("zero-shot", "plain", TITLES["zero-shot"])
    yield Entry("zero-shot", "matched", f"{TITLES['zero-shot']}, prior matched")
    yield Entry("icl", "served", TITLES["icl"])
    yield Entry("embedding", "sums", f"{TITLES['embedding']}, full sums")
    yield Entry("embedding", "gradient", f"{TITLES['embedding']}, conjugate gradients")
    for method in ("lora-8", "lora-16", "lora-32"):
        yield Entry(method, "plain", TITLES[method])
        yield Entry(method, "matched", f"{TITLES[method]}, prior matched")
        yield Entry(method, "head", f"{TITLES[method]}, + label head")
    for method in ("head", "second", *SECOND_VARIANTS, "published", "ours"):
        yield Entry(method, "served", TITLES[method])
    yield Entry("lora", "plain", TITLES["lora"])
    yield Entry("lora", "matched", f"{TITLES['lora']}, prior matched")
    for method in ("steps", "more-steps", "long", "compact", "compact-float16", "compact-int8"):
        yield Entry(method, "served", TITLES[method])


ENTRIES = tuple(_entries())


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


def figures(run: Mapping[str, Any], reading: str, texts: str) -> Mapping[str, float] | None:
    """Return accuracy and macro-F1 of a cell in a reading on a set of texts; None where they were not measured.

    Cells of the first release have texts A alone, and no macro-F1 with the label prior matched where that is not what is served.
    """
    if "readings" in run:
        found: Mapping[str, float] | None = run["readings"].get(reading, {}).get(texts)
        return found
    if texts != A:
        return None
    row = run["rows"][-1] if "rows" in run else run
    if reading == "matched":
        return {"accuracy": row["accuracy_prior_matched"]}
    return {"accuracy": row["accuracy"], "macro_f1": row["macro_f1"]}


def over_seeds(data: Data, entry: Entry, texts: str, name: str) -> Spread | None:
    """Return the spread of `accuracy` or `macro_f1` over the seeds; None where no seed, or not every seed, has it."""
    found = [figures(run, entry.reading, texts) for run in data["runs"][entry.method]]
    values = [one[name] for one in found if one is not None and name in one]
    return Spread.of(values) if len(values) == len(found) else None


def shown_accuracy(data: Data, entry: Entry) -> Spread | None:
    """Return the accuracy on A+B, or on A where nothing else was measured."""
    return over_seeds(data, entry, BOTH, "accuracy") or over_seeds(data, entry, A, "accuracy")


def most_common_machine(data: Mapping[str, Data]) -> Mapping[str, Any] | None:
    """Return the machine that most cells of ours ran on, else that most cells with rounds did; seconds of different machines are not averaged."""
    for methods in (tuple(TASKS), COMPARED):
        runs = [run for results in data.values() for method in methods for run in results["runs"][method] if "rows" in run]
        machines = [run["machine"] for run in runs if run.get("machine")]
        if machines:
            return max(machines, key=machines.count)
    return None


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


@dataclass(frozen=True, slots=True)
class ClientCost:
    """What a run cost one client.

    Attributes:
        rounds: calibration or training rounds.
        head_rounds: rounds for label heads.
        head_body, round_body: bytes of the largest body sent in a head round, and in a calibration or training round.
        head_up, round_up: bytes sent in one of these rounds with all headers, mean over them.
        up, down: bytes in all; with headers where `whole`, else bodies alone.
        seconds: core-seconds.
    """

    rounds: int = 0
    head_rounds: int = 0
    head_body: float | None = None
    round_body: float | None = None
    head_up: float | None = None
    round_up: float | None = None
    up: float = 0.0
    down: float = 0.0
    whole: bool = True
    seconds: float = 0.0

    @property
    def largest_body(self) -> float:
        """Bytes of the largest body that is sent in any round but the context round."""
        return max(self.head_body or 0.0, self.round_body or 0.0)


def client_cost(run: Mapping[str, Any], reading: str, wire: Mapping[str, Any] | None) -> ClientCost | None:
    """Return what a run cost one client; None where it has no rounds or its bytes were not counted."""
    if "parts" in run:
        return _task_cost(run["parts"])
    if run["method"] == "embedding":
        head = run["head"][reading]
        bodies = head["bodies_up"]
        up, down = sum(bodies), sum(head["bodies_down"])
        return ClientCost(0, len(bodies), max(bodies), up=up, down=down, whole=False, seconds=head["seconds"])
    if "rows" not in run or wire is None or run["method"] not in wire:
        return None
    parts, rounds = wire[run["method"]], run["rows"][-1]["round"]
    once = [parts[name] for name in ("joining", "context", "evaluation") if name in parts]
    up, down = (rounds * parts["round"][way] + sum(part[way] for part in once) for way in ("up", "down"))
    seconds = seconds_until(run)[-1]
    cost = ClientCost(rounds, 0, None, parts["bodies"]["update"], None, parts["round"]["up"], up, down, True, seconds)
    if reading != "head":
        return cost
    head = run["head"]
    return ClientCost(
        rounds,
        len(head["bodies_up"]),
        max(head["bodies_up"]),
        cost.round_body,
        None,
        cost.round_up,
        up + sum(head["bodies_up"]),
        down + sum(head["bodies_down"]),
        False,
        seconds + head["seconds"],
    )


def _task_cost(parts: Mapping[str, Any]) -> ClientCost:
    head, calibration = parts.get("head"), parts.get("calibration")
    return ClientCost(
        calibration["rounds"] if calibration else 0,
        head["rounds"] if head else 0,
        head["largest_body"] if head else None,
        calibration["largest_body"] if calibration else None,
        head["up"] / head["rounds"] if head else None,
        calibration["up"] / calibration["rounds"] if calibration else None,
        sum(part["up"] for part in parts.values()),
        sum(part["down"] for part in parts.values()),
        True,
        sum(part["seconds"] for part in parts.values()),
    )


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal on a data set; `met` is None where it was not measured."""

    data: str
    goal: str
    result: str
    met: bool | None


OURS = next(entry for entry in ENTRIES if entry.method == "second")
WITH_HEAD = tuple(entry for entry in ENTRIES if entry.method.startswith("lora-") and entry.reading == "head")


def goals(results: Mapping[str, Any]) -> list[Goal]:
    """Return the goals of ours by data set, for those on which it ran."""
    machine = most_common_machine(results["data"])
    return [goal for key, data in results["data"].items() if data["runs"]["second"] for goal in _goals_of(key, data, machine)]


def _goals_of(key: str, data: Data, machine: Mapping[str, Any] | None) -> Iterator[Goal]:
    title, ours = data["title"], over_seeds(data, OURS, BOTH, "accuracy")
    if key in ACCURACY_GOALS:
        points = None if ours is None else _points(ours.mean)
        goal = ACCURACY_GOALS[key]
        result, met = (MISSING, None) if points is None else (f"{points:.1f} %", points >= goal)
        yield Goal(title, f"accuracy of at least {goal} % on A+B", result, met)
    for rival in WITH_HEAD:
        gap = gap_to(data, rival)
        if gap is not None:
            yield Goal(title, f"at least the accuracy of {rival.title} on A+B", f"{gap:+.1f} points", gap >= 0)
    costs = [cost for run in data["runs"]["second"] if (cost := client_cost(run, OURS.reading, data["wire"]))]
    labels = len(DATASETS[key].labels) if key in DATASETS else None
    if costs and labels in BODY_GOALS:
        largest = max(cost.largest_body for cost in costs)
        yield Goal(
            title, f"at most {BODY_GOALS[labels]:,} bytes up in a round", f"{largest:,.0f} bytes", largest <= BODY_GOALS[labels]
        )
    ratio = seconds_ratio(data, OURS, machine)
    result, met = (MISSING, None) if ratio is None else (f"1/{ratio:.1f}", ratio >= SECONDS_GOAL)
    yield Goal(title, f"core-seconds at most 1/{SECONDS_GOAL} of those of {TITLES['lora-8']}", result, met)


def gap_to(data: Data, rival: Entry) -> float | None:
    """Return the points by which ours is above a rival on A+B, mean over the seeds that both have; None if there are none."""
    gaps = []
    rivals = {run["seed"]: figures(run, rival.reading, BOTH) for run in data["runs"][rival.method]}
    for run in data["runs"][OURS.method]:
        own, other = figures(run, OURS.reading, BOTH), rivals.get(run["seed"])
        if own is not None and other is not None:
            gaps.append(own["accuracy"] - other["accuracy"])
    return _points(mean(gaps)) if gaps else None


def seconds_ratio(data: Data, entry: Entry, machine: Mapping[str, Any] | None) -> float | None:
    """Return the core-seconds of FedAvg-LoRA with 8 steps over those of a row, means over the cells of one machine."""
    both = []
    for method, reading in (("lora-8", "plain"), (entry.method, entry.reading)):
        costs = [
            cost.seconds
            for run in data["runs"][method]
            if run.get("machine") == machine and (cost := client_cost(run, reading, data["wire"]))
        ]
        if not costs:
            return None
        both.append(mean(costs))
    return both[0] / both[1] if both[1] else None


def _points(share: float) -> float:
    """Return percent without the floating-point error of a mean of shares, so that two points are two points."""
    return round(100 * share, 6)
