"""Admin routes for the event stream and for webhooks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, status
from fastapi.sse import EventSourceResponse, ServerSentEvent

from ifed.errors import (
    AlreadyExists,
    BadUrl,
    BodyTimeout,
    Forbidden,
    Malformed,
    Overloaded,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnknownWebhook,
)
from ifed.messages.events import DeliveryInfo, NewWebhook, WebhookInfo, WebhookSecret
from ifed.messages.rounds import Page
from ifed.messages.tasks import NAME_PATTERN
from ifed.server.web import refusals
from services.aggregator.api.dependencies import (
    LARGEST,
    AdminOnly,
    After,
    AfterNumber,
    CallerDep,
    EventStreamDep,
    Limit,
    NamePath,
    PartyRoute,
    WebhooksDep,
)

router = APIRouter(
    route_class=PartyRoute,
    prefix="/v1",
    tags=["admin"],
    dependencies=[AdminOnly],
    responses=refusals(Unauthenticated, Forbidden, Malformed, BodyTimeout, TooLarge, Overloaded, Unavailable),
)
TaskFilter = Annotated[str | None, Query(pattern=NAME_PATTERN, description="only events of this task")]
Since = Annotated[int | None, Query(ge=0, le=LARGEST, description="only events after this number; when not set, those from now on")]
LastEventId = Annotated[
    int | None, Header(ge=0, le=LARGEST, description="the number of the last event seen; takes precedence over `after`")
]


async def read_start(event_stream: EventStreamDep, after: Since = None, last_event_id: LastEventId = None) -> int:
    """Return the number after which a stream begins."""
    number = after if last_event_id is None else last_event_id
    return await event_stream.newest() if number is None else number


STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "messages whose `data` is an Event in JSON",
        "content": {
            "text/event-stream": {
                "example": 'event: round.closed\ndata: {"number":7,"kind":"round.closed","task":"sentiment"}\nid: 7\n\n'
            }
        },
    }
}
StartDep = Annotated[int, Depends(read_start)]


@router.get("/events", response_class=EventSourceResponse, responses=STREAM)
async def stream_events(
    event_stream: EventStreamDep, start: StartDep, caller: CallerDep, task: TaskFilter = None
) -> AsyncIterator[ServerSentEvent]:
    """Stream what happens to tasks and rounds as server-sent events: opened, closed, failed, cancelled, promoted, finished.

    The `id` of an event is its number. With `Last-Event-ID` a stream continues where it broke off, on any replica, also after a
    restart. While nothing happens a comment is sent every 15 seconds.
    """
    yield ServerSentEvent(id=str(start), comment="following")
    async for event in event_stream.follow(start, task, caller=caller):
        yield ServerSentEvent(data=event, event=event.kind.value, id=str(event.number))


@router.post("/webhooks", status_code=status.HTTP_201_CREATED, responses=refusals(AlreadyExists, Malformed, BadUrl))
async def register_webhook(request: NewWebhook, webhooks: WebhooksDep) -> WebhookSecret:
    """Register an address that events are posted to, signed according to Standard Webhooks. The secret is shown only here."""
    return await webhooks.register(request)


@router.get("/webhooks")
async def list_webhooks(webhooks: WebhooksDep, after: After = None, limit: Limit = 100) -> Page[WebhookInfo]:
    """List webhooks by name, without their secrets."""
    return await webhooks.page(after, limit)


@router.delete("/webhooks/{webhook}", status_code=status.HTTP_204_NO_CONTENT, responses=refusals(UnknownWebhook))
async def remove_webhook(webhook: NamePath, webhooks: WebhooksDep) -> None:
    """Remove a webhook with its pending deliveries."""
    await webhooks.remove(webhook)


@router.get("/webhooks/{webhook}/deliveries", responses=refusals(UnknownWebhook))
async def list_deliveries(
    webhook: NamePath, webhooks: WebhooksDep, after: AfterNumber = 0, limit: Limit = 100
) -> Page[DeliveryInfo]:
    """List the deliveries of events to a webhook, the oldest first."""
    return await webhooks.deliveries(webhook, after, limit)
