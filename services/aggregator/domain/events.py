"""Domain events: what happened to tasks, rounds and context vectors, and who is notified."""

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
    """Something that happened to a task, a round or a context vector.

    Attributes:
        version: of the coefficients that a round made, or that are served from now on or no longer; or of the revised context vector.
        number: the position in the order of commits; None until it is stored.
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
    """A receiver of events. Its secret is stored in plain text, because it signs the deliveries.

    Attributes:
        kinds: the events it receives; None for all.
        task: the task whose events it receives; None for all.
    """

    name: str
    url: str = field(repr=False)
    secret: str = field(repr=False)
    created_at: datetime
    kinds: tuple[EventKind, ...] | None = None
    task: str | None = None

    def wants(self, event: DomainEvent) -> bool:
        """Return whether the webhook receives this event."""
        return (self.kinds is None or event.kind in self.kinds) and self.task in (None, event.task)


@dataclass(frozen=True, slots=True)
class Delivery:
    """The delivery of one event to one webhook.

    Attributes:
        next_at: when it is attempted next; None when it is not.
        status: the HTTP status of the last answer.
        error: why the last attempt failed.
    """

    happening: DomainEvent
    state: DeliveryState = DeliveryState.PENDING
    attempts: int = 0
    next_at: datetime | None = None
    status: int | None = None
    error: str | None = None
    delivered_at: datetime | None = None


_ROUND_EVENTS = {
    RoundState.OPEN: EventKind.ROUND_OPENED,
    RoundState.CLOSED: EventKind.ROUND_CLOSED,
    RoundState.FAILED: EventKind.ROUND_FAILED,
    RoundState.CANCELLED: EventKind.ROUND_CANCELLED,
}
_TASK_EVENTS = {
    TaskState.DRAFT: EventKind.TASK_CREATED,
    TaskState.RUNNING: EventKind.TASK_STARTED,
    TaskState.PAUSED: EventKind.TASK_PAUSED,
    TaskState.FINISHED: EventKind.TASK_FINISHED,
    TaskState.FAILED: EventKind.TASK_FAILED,
}


def of_round(before: RoundState | None, after: Round, at: datetime) -> list[DomainEvent]:
    """Return the events of a round that was in the state `before`; None for a new round."""
    if after.state is before or after.state not in _ROUND_EVENTS:
        return []
    version = after.produced if after.state is RoundState.CLOSED else after.version
    return [DomainEvent(_ROUND_EVENTS[after.state], at, after.task, after.number, after.kind, version, after.reason)]


def of_task(before: tuple[TaskState, int | None] | None, after: Task, at: datetime) -> list[DomainEvent]:
    """Return the events of a task that had the state and served the version `before`; None for a new task."""
    state, served = before or (None, None)
    events = []
    if after.served is not None and after.served != served:
        events.append(DomainEvent(EventKind.ADAPTER_PROMOTED, at, after.name, version=after.served, reason=after.reason))
    if after.served is None and served is not None:
        events.append(DomainEvent(EventKind.ADAPTER_WITHDRAWN, at, after.name, version=served, reason=after.reason))
    if after.state is not state:
        resumed = (state, after.state) == (TaskState.PAUSED, TaskState.RUNNING)
        kind = EventKind.TASK_RESUMED if resumed else _TASK_EVENTS[after.state]
        events.append(DomainEvent(kind, at, after.name, version=after.served, reason=after.reason))
    return events


def of_context(added: Aggregate, at: datetime) -> list[DomainEvent]:
    """Return the events of a new version of a context vector; none for the first, which comes with the end of its round."""
    return [] if added.version == 1 else [DomainEvent(EventKind.CONTEXT_REVISED, at, added.task, version=added.version)]


def of_deletion(task: str, at: datetime) -> list[DomainEvent]:
    """Return the events of a task that was deleted."""
    return [DomainEvent(EventKind.TASK_DELETED, at, task)]
