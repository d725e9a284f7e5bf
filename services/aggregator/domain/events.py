"""What is kept besides rounds and tasks: parties, members, and the aggregates. Plain values: knows no database and no HTTP."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from ifed.messages.enums import RoundKind, RoundState, TaskState
from ifed.messages.events import DeliveryState, EventKind
from services.aggregator.domain.aggregates import Aggregate
from services.aggregator.domain.round import Round
from services.aggregator.domain.task import Task


@dataclass(frozen=True, slots=True)
class DomainEvent:
    """Something that happened to a task or a round.

    Attributes:
        version: the coefficients that a round made, that are served from now on or no more, or the context vector that was revised.
        number: counts what happened, in the order of its commits; None until it is kept.
    """

    kind: EventKind
    at: datetime
    task: str
    round: int | None = None
    round_kind: RoundKind | None = None
    version: int | None = None
    reason: str | None = None
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Webhook:
    """A receiver of what happens. Its secret is kept as it is, since it signs.

    Attributes:
        kinds: what it is told; None is everything.
        task: the task it is told of; None is every task.
    """

    name: str
    url: str = field(repr=False)
    secret: str = field(repr=False)
    created_at: datetime
    kinds: tuple[EventKind, ...] | None = None
    task: str | None = None

    def wants(self, happening: DomainEvent) -> bool:
        return (self.kinds is None or happening.kind in self.kinds) and self.task in (None, happening.task)


@dataclass(frozen=True, slots=True)
class Delivery:
    """Something that happened, on its way to one webhook."""

    happening: DomainEvent
    state: DeliveryState = DeliveryState.PENDING
    attempts: int = 0
    next_at: datetime | None = None
    status: int | None = None
    error: str | None = None
    delivered_at: datetime | None = None


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


def of_round(before: RoundState | None, after: Round, at: datetime) -> list[DomainEvent]:
    """What it is that a round left the state `before` for the one it is in now; None when it was not there before."""
    if after.state is before or after.state not in OF_ROUND:
        return []
    version = after.produced if after.state is RoundState.CLOSED else after.version
    return [DomainEvent(OF_ROUND[after.state], at, after.task, after.number, after.kind, version, after.reason)]


def of_task(before: tuple[TaskState, int | None] | None, after: Task, at: datetime) -> list[DomainEvent]:
    """What it is that a task was in a state and served a version `before`, and now is and serves what it does."""
    state, served = before or (None, None)
    found = []
    if after.served is not None and after.served != served:
        found.append(DomainEvent(EventKind.ADAPTER_PROMOTED, at, after.name, version=after.served, reason=after.reason))
    if after.served is None and served is not None:
        found.append(DomainEvent(EventKind.ADAPTER_WITHDRAWN, at, after.name, version=served, reason=after.reason))
    if after.state is not state:
        resumed = (state, after.state) == (TaskState.PAUSED, TaskState.RUNNING)
        kind = EventKind.TASK_RESUMED if resumed else OF_TASK[after.state]
        found.append(DomainEvent(kind, at, after.name, version=after.served, reason=after.reason))
    return found


def of_context(made: Aggregate, at: datetime) -> list[DomainEvent]:
    """What it is that a context vector is there; the closing of its round tells of the first."""
    return [] if made.version == 1 else [DomainEvent(EventKind.CONTEXT_REVISED, at, made.task, version=made.version)]


def of_deletion(task: str, at: datetime) -> list[DomainEvent]:
    """What it is that a task is gone."""
    return [DomainEvent(EventKind.TASK_DELETED, at, task)]
