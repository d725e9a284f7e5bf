"""Webhooks as admins see them: registered, listed, removed, and what became of each event. Knows no HTTP and no SQL."""

from __future__ import annotations

import base64
import secrets

import structlog

from ifed.clients.webhooks import check_url
from ifed.contracts import Page
from ifed.events import DeliveryInfo, NewWebhook, WebhookInfo, WebhookSecret
from services.aggregator import views
from services.aggregator.backstage import Backstage
from services.aggregator.records import Delivery, Webhook
from services.aggregator.watching import event_info

log = structlog.get_logger(__name__)


class Webhooks:
    """Registers receivers. Delivering is the courier's work.

    Args:
        private: whether receivers may be on this machine or in a private network.
    """

    def __init__(self, backstage: Backstage, *, private: bool) -> None:
        self._backstage, self._private = backstage, private

    async def register(self, request: NewWebhook) -> WebhookSecret:
        """A new receiver of what happens from now on; its secret is in the answer and nowhere else; BadUrl, AlreadyExists."""
        check_url(request.url, private=self._private)
        kinds = None if request.events is None else tuple(dict.fromkeys(request.events))
        webhook = Webhook(request.name, request.url, new_secret(), self._backstage.clock(), kinds, request.task)
        async with self._backstage.store.work() as work:
            await work.webhooks.add(webhook)
            await work.commit()
        await log.ainfo("webhook registered", webhook=webhook.name)
        return WebhookSecret(**_info(webhook, 0).model_dump(), secret=webhook.secret)

    async def page(self, after: str | None, limit: int) -> Page[WebhookInfo]:
        """Webhooks by name, without their secrets."""
        async with self._backstage.store.reading() as work:
            found = await work.webhooks.page(after, limit + 1)
        return views.page([_info(*one) for one in found], limit, lambda webhook: webhook.name)

    async def remove(self, name: str) -> None:
        """Send it nothing any more and forget what was on its way; UnknownWebhook."""
        async with self._backstage.store.work() as work:
            await work.webhooks.delete(name)
            await work.commit()
        await log.ainfo("webhook removed", webhook=name)

    async def deliveries(self, name: str, after: int, limit: int) -> Page[DeliveryInfo]:
        """What became of each event, the oldest first; UnknownWebhook."""
        async with self._backstage.store.reading() as work:
            await work.webhooks.get(name)
            found = await work.webhooks.deliveries(name, after, limit + 1)
        return views.page([_delivery_info(one) for one in found], limit, lambda one: str(one.event.number))


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
