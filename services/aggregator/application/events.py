"""What happens, told to whoever follows it: from the database, woken by the cache. Knows no HTTP and no SQL."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator

import structlog

from ifed.clients.webhooks import check_url
from ifed.errors import Unavailable
from ifed.messages.events import DeliveryInfo, Event, NewWebhook, WebhookInfo, WebhookSecret
from ifed.messages.rounds import Page
from services.aggregator.application import messages
from services.aggregator.application.dependencies import EVERYTHING, Dependencies
from services.aggregator.domain.events import Delivery, DomainEvent, Webhook

EVENTS_AT_ONCE = 200
PATIENCE_SECONDS = 1.0


class EventStream:
    """Streams of events. A stream holds no connection to the database while nothing happens."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies

    async def newest(self) -> int:
        """The number after which everything is still to come."""
        async with self._dependencies.database.read_only() as work:
            return await work.events.newest()

    async def follow(self, after: int, task: str | None) -> AsyncIterator[Event]:
        """Every event after that number, of one task where it is named, until the process stops. Waits for a database that is away."""

        async def look() -> list[DomainEvent]:
            async with self._dependencies.database.read_only() as work:
                return await work.events.page(after, EVENTS_AT_ONCE, task)

        long_poll = self._dependencies.long_poll
        while True:
            try:
                found = await long_poll.until(EVERYTHING, look, bool, wait=long_poll.longest)
            except Unavailable:
                await asyncio.sleep(PATIENCE_SECONDS)
                found = []
            for one in found:
                yield event_info(one)
                assert one.number is not None, "it was read from the store"
                after = one.number
            if long_poll.closing and not found:
                return


def event_info(one: DomainEvent) -> Event:
    """An event as those who follow see it."""
    assert one.number is not None, "it was read from the store"
    return Event(
        number=one.number,
        at=one.at,
        kind=one.kind,
        task=one.task,
        round=one.round,
        round_kind=one.round_kind,
        version=one.version,
        reason=one.reason,
    )


log = structlog.get_logger(__name__)


class Webhooks:
    """Registers receivers. Delivering is the courier's work.

    Args:
        private: whether receivers may be on this machine or in a private network.
    """

    def __init__(self, dependencies: Dependencies, *, private: bool) -> None:
        self._dependencies, self._private = dependencies, private

    async def register(self, request: NewWebhook) -> WebhookSecret:
        """A new receiver of what happens from now on; its secret is in the answer and nowhere else; BadUrl, AlreadyExists."""
        check_url(request.url, private=self._private)
        kinds = None if request.events is None else tuple(dict.fromkeys(request.events))
        webhook = Webhook(request.name, request.url, new_secret(), self._dependencies.clock(), kinds, request.task)
        async with self._dependencies.database.unit_of_work() as work:
            await work.webhooks.add(webhook)
            await work.commit()
        await log.ainfo("webhook registered", webhook=webhook.name)
        return WebhookSecret(**_info(webhook, 0).model_dump(), secret=webhook.secret)

    async def page(self, after: str | None, limit: int) -> Page[WebhookInfo]:
        """Webhooks by name, without their secrets."""
        async with self._dependencies.database.read_only() as work:
            found = await work.webhooks.page(after, limit + 1)
        return messages.page([_info(*one) for one in found], limit, lambda webhook: webhook.name)

    async def remove(self, name: str) -> None:
        """Send it nothing any more and forget what was on its way; UnknownWebhook."""
        async with self._dependencies.database.unit_of_work() as work:
            await work.webhooks.delete(name)
            await work.commit()
        await log.ainfo("webhook removed", webhook=name)

    async def deliveries(self, name: str, after: int, limit: int) -> Page[DeliveryInfo]:
        """What became of each event, the oldest first; UnknownWebhook."""
        async with self._dependencies.database.read_only() as work:
            await work.webhooks.get(name)
            found = await work.webhooks.deliveries(name, after, limit + 1)
        return messages.page([_delivery_info(one) for one in found], limit, lambda one: str(one.event.number))


def new_secret() -> str:
    """256 random bits in the form that Standard Webhooks libraries take."""
    return f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"


def _info(webhook: Webhook, pending: int) -> WebhookInfo:
    return WebhookInfo(
        name=webhook.name,
        url=webhook.url,
        events=None if webhook.kinds is None else list(webhook.kinds),
        task=webhook.task,
        created_at=webhook.created_at,
        pending=pending,
    )


def _delivery_info(delivery: Delivery) -> DeliveryInfo:
    return DeliveryInfo(
        event=event_info(delivery.happening),
        state=delivery.state,
        attempts=delivery.attempts,
        next_at=delivery.next_at,
        status=delivery.status,
        error=delivery.error,
        delivered_at=delivery.delivered_at,
    )
