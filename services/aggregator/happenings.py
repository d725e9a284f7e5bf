"""What a change of a task or a round is to someone who watches. Pure: compares before and after; keeps nothing."""

from __future__ import annotations

from datetime import datetime

from ifed.events import EventKind
from ifed.states import RoundState, TaskState
from services.aggregator.domain import Round
from services.aggregator.records import Aggregate, FederatedTask, Happening

OF_ROUND = {
    RoundState.OPEN: EventKind.ROUND_OPENED,
    RoundState.CLOSED: EventKind.ROUND_CLOSED,
    RoundState.FAILED: EventKind.ROUND_FAILED,
    RoundState.CANCELLED: EventKind.ROUND_CANCELLED,
}
OF_TASK = {
    TaskState.DRAFT: EventKind.TASK_CREATED,
    TaskState.RUNNING: EventKind.TASK_STARTED,
    TaskState.PAUSED: EventKind.TASK_PAUSED,
    TaskState.FINISHED: EventKind.TASK_FINISHED,
    TaskState.FAILED: EventKind.TASK_FAILED,
}


def of_round(before: RoundState | None, after: Round, at: datetime) -> list[Happening]:
    """What it is that a round left the state `before` for the one it is in now; None when it was not there before."""
    if after.state is before or after.state not in OF_ROUND:
        return []
    version = after.produced if after.state is RoundState.CLOSED else after.version
    return [Happening(OF_ROUND[after.state], at, after.task, after.number, after.kind, version, after.reason)]


def of_task(before: tuple[TaskState, int | None] | None, after: FederatedTask, at: datetime) -> list[Happening]:
    """What it is that a task was in a state and served a version `before`, and now is and serves what it does."""
    state, served = before or (None, None)
    found = []
    if after.served is not None and after.served != served:
        found.append(Happening(EventKind.ADAPTER_PROMOTED, at, after.name, version=after.served, reason=after.reason))
    if after.served is None and served is not None:
        found.append(Happening(EventKind.ADAPTER_WITHDRAWN, at, after.name, version=served, reason=after.reason))
    if after.state is not state:
        resumed = (state, after.state) == (TaskState.PAUSED, TaskState.RUNNING)
        kind = EventKind.TASK_RESUMED if resumed else OF_TASK[after.state]
        found.append(Happening(kind, at, after.name, version=after.served, reason=after.reason))
    return found


def of_context(made: Aggregate, at: datetime) -> list[Happening]:
    """What it is that a context vector is there; the closing of its round tells of the first."""
    return [] if made.version == 1 else [Happening(EventKind.CONTEXT_REVISED, at, made.task, version=made.version)]


def of_deletion(task: str, at: datetime) -> list[Happening]:
    """What it is that a task is gone."""
    return [Happening(EventKind.TASK_DELETED, at, task)]
