"""Routes for admins about what happens: the stream of events, and webhooks. Each parses, calls, returns."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, status
from fastapi.sse import EventSourceResponse, ServerSentEvent

from ifed.errors import AlreadyExists, BadUrl, Forbidden, Malformed, Unauthenticated, Unavailable, UnknownWebhook
from ifed.messages.events import DeliveryInfo, NewWebhook, WebhookInfo, WebhookSecret
from ifed.messages.rounds import Page
from ifed.messages.tasks import NAME_PATTERN
from ifed.server.web import refusals
from services.aggregator.api.dependencies import LARGEST, AdminOnly, After, AfterNumber, AggregatorDep, Limit, NamePath

router = APIRouter(
    prefix="/v1", tags=["admin"], dependencies=[AdminOnly], responses=refusals(Unauthenticated, Forbidden, Malformed, Unavailable)
)
OneTask = Annotated[str | None, Query(pattern=NAME_PATTERN, description="tell of this task alone")]
Since = Annotated[int | None, Query(ge=0, le=LARGEST, description="tell what came after this number; when not set, what comes now")]
LastEventId = Annotated[int | None, Header(ge=0, le=LARGEST, description="the number of the last event seen; goes before `after`")]


async def read_start(service: AggregatorDep, after: Since = None, last_event_id: LastEventId = None) -> int:
    """The number after which a stream begins."""
    told = after if last_event_id is None else last_event_id
    return await service.watching.newest() if told is None else told


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
async def stream_events(service: AggregatorDep, start: StartDep, task: OneTask = None) -> AsyncIterator[ServerSentEvent]:
    """What happens to tasks and rounds, as server-sent events: opened, closed, failed, cancelled, promoted, finished.

    The `id` of each is its number. A connection that broke goes on where it was with `Last-Event-ID`, on any replica, also after a
    restart. A comment comes every 15 seconds while nothing happens.
    """
    yield ServerSentEvent(id=str(start), comment="following")
    async for event in service.watching.follow(start, task):
        yield ServerSentEvent(data=event, event=event.kind.value, id=str(event.number))


@router.post("/webhooks", status_code=status.HTTP_201_CREATED, responses=refusals(AlreadyExists, Malformed, BadUrl))
async def register_webhook(request: NewWebhook, service: AggregatorDep) -> WebhookSecret:
    """Have events posted to an address, signed as the Standard Webhooks specification says. The secret is shown this once."""
    return await service.webhooks.register(request)


@router.get("/webhooks")
async def list_webhooks(service: AggregatorDep, after: After = None, limit: Limit = 100) -> Page[WebhookInfo]:
    """Webhooks by name, without their secrets."""
    return await service.webhooks.page(after, limit)


@router.delete("/webhooks/{webhook}", status_code=status.HTTP_204_NO_CONTENT, responses=refusals(UnknownWebhook))
async def remove_webhook(webhook: NamePath, service: AggregatorDep) -> None:
    """Send it nothing any more; what was on its way is forgotten with it."""
    await service.webhooks.remove(webhook)


@router.get("/webhooks/{webhook}/deliveries", responses=refusals(UnknownWebhook))
async def list_deliveries(
    webhook: NamePath, service: AggregatorDep, after: AfterNumber = 0, limit: Limit = 100
) -> Page[DeliveryInfo]:
    """What became of each event that this webhook was to be told, the oldest first."""
    return await service.webhooks.deliveries(webhook, after, limit)
