"""Messages of events, webhooks and deliveries."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from ifed.messages.enums import RoundKind
from ifed.messages.tasks import Message, Name


class EventKind(StrEnum):
    """The kinds of events."""

    TASK_CREATED = "task.created"
    TASK_STARTED = "task.started"
    TASK_PAUSED = "task.paused"
    TASK_RESUMED = "task.resumed"
    TASK_FINISHED = "task.finished"
    TASK_FAILED = "task.failed"
    TASK_DELETED = "task.deleted"
    ROUND_OPENED = "round.opened"
    ROUND_CLOSED = "round.closed"
    ROUND_FAILED = "round.failed"
    ROUND_CANCELLED = "round.cancelled"
    CONTEXT_REVISED = "context.revised"
    ADAPTER_PROMOTED = "adapter.promoted"
    ADAPTER_WITHDRAWN = "adapter.withdrawn"


class DeliveryState(StrEnum):
    """The state of the delivery of an event to a webhook; the last two are final."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class Event(Message):
    """Something that happened to a task or round, written in the same transaction."""

    number: int = Field(description="counts the events; `Last-Event-ID` and `after` take it", examples=[7])
    at: datetime
    kind: EventKind
    task: Name = Field(examples=["sentiment"])
    round: int | None = Field(None, description="number of the round, by what happens to rounds")
    round_kind: RoundKind | None = None
    version: int | None = Field(
        None, description="of what the event is about: coefficients, or the context vector that was revised"
    )
    reason: str | None = Field(None, description="why, where it did not go as planned")


class NewWebhook(Message):
    """A receiver of events."""

    name: Name = Field(examples=["pager"])
    url: str = Field(max_length=2000, examples=["https://hooks.example.org/ifed"], description="where events are posted")
    events: list[EventKind] | None = Field(None, min_length=1, description="the kinds it is told; every kind when not set")
    task: Name | None = Field(None, description="the task it is told of; every task when not set")


class WebhookInfo(NewWebhook):
    """A receiver of events, without its secret."""

    created_at: datetime
    pending: int = Field(0, description="events that still have to be delivered")


class WebhookSecret(WebhookInfo):
    """A receiver of events with the secret that signs its deliveries, shown only in this response."""

    secret: str = Field(
        examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"], description="verify with any Standard Webhooks library"
    )


class DeliveryInfo(Message):
    """The delivery of one event to one webhook."""

    event: Event
    state: DeliveryState
    attempts: int
    next_at: datetime | None = Field(None, description="when it is tried next, while it is pending")
    status: int | None = Field(None, description="the HTTP status of the last attempt")
    error: str | None = Field(None, description="what went wrong at the last attempt")
    delivered_at: datetime | None = None
