"""The live display of a demo: one line per client, one line per round."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.text import Text

from ifed.cli.console import percent, size
from ifed.cli.tables import Column, FittedTable
from ifed.messages.enums import HeadQuestion, RoundKind, RoundState, TaskState
from ifed.messages.rounds import RoundInfo, TaskInfo


@dataclass(frozen=True, slots=True)
class AgentView:
    """The status of an agent, from its status page."""

    activity: str = "starting"
    done: int = 0
    total: int = 0
    training: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that the display shows at one moment."""

    task: TaskInfo
    rounds: list[RoundInfo]
    agents: Mapping[str, AgentView]
    began: float


def draw(now: Snapshot) -> RenderableType:
    """Return the display of a snapshot."""
    return Group(_header(now), _clients(now), _rounds(now))


def lines(before: Snapshot | None, now: Snapshot) -> list[str]:
    """Return what changed since `before`, for output that is not a terminal: a line for each client that joined and each round that ended.

    The rounds of one label head share a line, when the last of them has closed.
    """
    joined = {member.client for member in before.task.members} if before else set()
    changes = [
        f"{member.client} joined with {sum(member.label_counts.values())} examples and {member.holdout} held out"
        for member in now.task.members
        if member.client not in joined
    ]
    ended = {round_.number for round_ in before.rounds if round_.closed_at} if before else set()
    for round_ in now.rounds:
        if round_.closed_at and round_.number not in ended:
            if round_.kind is RoundKind.HEAD and round_.state is RoundState.CLOSED:
                if round_.question is HeadQuestion.LIKELIHOOD:
                    changes.append(_solved_head([other for other in now.rounds if _of_same_head(other, round_)]))
                continue
            parts = [f"round {round_.number} ({round_.kind}) {round_.state} after {_seconds(round_):.1f} s"]
            if round_.loss is not None:
                parts.append(f"loss {round_.loss:.4f}")
            if round_.evaluation:
                parts.append(f"accuracy {_version_in_words(round_.evaluation.version)} {percent(round_.evaluation.accuracy)}")
            parts.append(f"{size(sum(client.bytes_up or 0 for client in round_.clients))} up")
            changes.append(", ".join(parts))
    return changes


def _of_same_head(other: RoundInfo, round_: RoundInfo) -> bool:
    return (other.kind, other.state, other.version) == (round_.kind, round_.state, round_.version)


def _solved_head(rounds: Sequence[RoundInfo]) -> str:
    first, last = rounds[0].number, rounds[-1].number
    seconds = sum(map(_seconds, rounds))
    sent = sum(client.bytes_up or 0 for round_ in rounds for client in round_.clients)
    return f"rounds {first} to {last} (head) closed after {seconds:.1f} s, {size(sent)} up"


def _header(now: Snapshot) -> RenderableType:
    spec = now.task.spec
    place = "no round yet"
    if now.task.round is not None:
        place = f"round {now.task.round.number}, {now.task.round.kind}"
    calibrated = sum(round_.kind is RoundKind.CALIBRATION and round_.state is RoundState.CLOSED for round_ in now.rounds)
    return Text.assemble(
        ("Task ", "bold"),
        f"{spec.name}: {' or '.join(spec.labels)}, on {spec.model}; {place}; ",
        f"{calibrated} of at most {spec.policy.rounds} calibration rounds; {time.monotonic() - now.began:.0f} s",
    )


def _has_finished(now: Snapshot) -> bool:
    return now.task.state is TaskState.FINISHED


def _version_in_words(version: int) -> str:
    """Describe the version that a round evaluated, which is the one it started from."""
    return "of the base model" if version == 0 else f"of version {version}"


def _clients(now: Snapshot) -> FittedTable:
    table = FittedTable(
        Column("organisation", wraps=True),
        "state",
        Column("progress", optional=2),
        "loss",
        "accuracy",
        Column("sent", optional=1),
        Column("received", optional=3),
    )
    for name, agent in now.agents.items():
        parts = [client for round_ in now.rounds for client in round_.clients if client.client == name]
        table.add_row(
            name,
            "done" if _has_finished(now) else agent.activity,
            ProgressBar(total=agent.total, completed=agent.done, width=10) if agent.total and not _has_finished(now) else "",
            next((f"{part.loss:.3f}" for part in reversed(parts) if part.loss is not None), ""),
            next((percent(part.accuracy) for part in reversed(parts) if part.accuracy is not None), ""),
            size(agent.bytes_up),
            size(agent.bytes_down),
        )
    return table


def _rounds(now: Snapshot) -> FittedTable:
    """Return the rounds, each with the accuracy of the version it made, which the next round evaluates."""
    table = FittedTable(
        "round",
        "kind",
        "state",
        "clients",
        Column("seconds", optional=2),
        "loss",
        "accuracy\nafter",
        Column("macro-F1", optional=1),
    )
    evaluations = {evaluation.version: evaluation for evaluation in now.task.evaluations}
    for round_ in now.rounds:
        contributed = sum(client.contributed_at is not None for client in round_.clients)
        made = 0 if round_.kind is RoundKind.CONTEXT and round_.closed_at else round_.produced
        evaluation = None if made is None else evaluations.get(made)
        table.add_row(
            str(round_.number),
            round_.kind,
            round_.state,
            f"{contributed}/{len(round_.expected)}",
            f"{_seconds(round_):.1f}" if round_.closed_at else "…",
            "" if round_.loss is None else f"{round_.loss:.3f}",
            f"{percent(evaluation.accuracy)}{' (base)' if made == 0 else ''}" if evaluation else "",
            f"{evaluation.macro_f1:.3f}" if evaluation else "",
        )
    return table


def _seconds(round_: RoundInfo) -> float:
    return (round_.closed_at - round_.opened_at).total_seconds() if round_.closed_at else 0.0
