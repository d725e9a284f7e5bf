"""The stream of domain events, and the webhooks that receive them."""

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
from services.aggregator.application.dependencies import ALL_EVENTS, Dependencies
from services.aggregator.domain.events import Delivery, DomainEvent, Webhook
from services.aggregator.runtime.long_poll import NOBODY, Caller

log = structlog.get_logger(__name__)
EVENTS_AT_ONCE = 200
RETRY_SECONDS = 1.0


class EventStream:
    """Streams of domain events. A stream holds no database connection while it waits."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies

    async def newest(self) -> int:
        """Return the number of the newest event."""
        async with self._dependencies.database.read_only() as work:
            return await work.events.newest()

    async def follow(self, after: int, task: str | None, *, caller: Caller = NOBODY) -> AsyncIterator[Event]:
        """Yield every event after the number `after`, of one task where it is named, until the process stops or too many streams are open.

        While the database cannot be reached, wait for it.
        """

        async def read() -> list[DomainEvent]:
            async with self._dependencies.database.read_only() as work:
                return await work.events.page(after, EVENTS_AT_ONCE, task)

        long_poll = self._dependencies.long_poll
        with long_poll.hold(caller) as held_request:
            while True:
                try:
                    events = await long_poll.until_released(
                        ALL_EVENTS, read, bool, wait=long_poll.longest, held_request=held_request
                    )
                except Unavailable:
                    await asyncio.sleep(RETRY_SECONDS)
                    events = []
                for event in events:
                    info = event_info(event)
                    yield info
                    after = info.number
                if (long_poll.closing or held_request.released) and not events:
                    return


def event_info(event: DomainEvent) -> Event:
    """Return a stored domain event as streams and webhooks send it."""
    assert event.number is not None, "it was read from the database"
    return Event(
        number=event.number,
        at=event.at,
        kind=event.kind,
        task=event.task,
        round=event.round,
        round_kind=event.round_kind,
        version=event.version,
        reason=event.reason,
    )


class Webhooks:
    """Register and remove webhooks. `WebhookDispatcher` delivers to them.

    Args:
        private: whether receivers may be on this machine or in a private network.
    """

    def __init__(self, dependencies: Dependencies, *, private: bool) -> None:
        self._dependencies, self._private = dependencies, private

    async def register(self, request: NewWebhook) -> WebhookSecret:
        """Register a webhook for events from now on. Its secret is returned only here.

        Raises:
            BadUrl: the address is not allowed.
            AlreadyExists: the name is taken.
        """
        check_url(request.url, private=self._private)
        kinds = None if request.events is None else tuple(dict.fromkeys(request.events))
        webhook = Webhook(request.name, request.url, new_secret(), self._dependencies.clock(), kinds, request.task)
        async with self._dependencies.database.unit_of_work() as work:
            await work.webhooks.add(webhook)
            await work.commit()
        await log.ainfo("webhook registered", webhook=webhook.name)
        return WebhookSecret(**_info(webhook, 0).model_dump(), secret=webhook.secret)

    async def page(self, after: str | None, limit: int) -> Page[WebhookInfo]:
        """Return up to `limit` webhooks by name, those after `after`, without their secrets."""
        async with self._dependencies.database.read_only() as work:
            rows = await work.webhooks.page(after, limit + 1)
        infos = [_info(webhook, pending) for webhook, pending in rows]
        return messages.page(infos, limit, lambda info: info.name)

    async def remove(self, name: str) -> None:
        """Remove a webhook with its pending deliveries.

        Raises:
            UnknownWebhook: there is no webhook of this name.
        """
        async with self._dependencies.database.unit_of_work() as work:
            await work.webhooks.delete(name)
            await work.commit()
        await log.ainfo("webhook removed", webhook=name)

    async def deliveries(self, name: str, after: int, limit: int) -> Page[DeliveryInfo]:
        """Return up to `limit` deliveries to a webhook by the number of the event, those after `after`.

        Raises:
            UnknownWebhook: there is no webhook of this name.
        """
        async with self._dependencies.database.read_only() as work:
            await work.webhooks.get(name)
            deliveries = await work.webhooks.deliveries(name, after, limit + 1)
        infos = [_delivery_info(delivery) for delivery in deliveries]
        return messages.page(infos, limit, lambda info: str(info.event.number))


def new_secret() -> str:
    """Return a signing secret of 256 random bits in the format of Standard Webhooks."""
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
