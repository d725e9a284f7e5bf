"""Deliver events to webhooks: sign, send, retry, give up."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog
from standardwebhooks import Webhook as Signer

from ifed.clients.webhooks import WebhookCaller, WebhookResponse
from ifed.errors import Unavailable, UnknownWebhook
from ifed.messages.events import DeliveryState
from services.aggregator.application.dependencies import Dependencies
from services.aggregator.application.events import event_info
from services.aggregator.domain.events import Delivery, Webhook

log = structlog.get_logger(__name__)
BATCH_SIZE = 20
GONE = 410  # the HTTP status with which a receiver says that it wants no more
BACKOFF_FACTOR = 4.0
LONGEST_WAIT_SECONDS = 86_400.0
CLAIM_MARGIN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a delivery is attempted again.

    Attributes:
        timeout: the longest time of one attempt, in seconds.
        first: the wait after the first attempt, in seconds; four times as long after each further one, at most a day.
        attempts: the number of attempts after which a delivery is given up.
    """

    timeout: float
    first: float
    attempts: int

    def wait(self, attempts: int, retry_after: float | None) -> timedelta:
        """Return the wait after so many attempts, or the receiver's Retry-After in seconds if that is longer."""
        seconds = min(self.first * BACKOFF_FACTOR ** min(attempts - 1, 30), LONGEST_WAIT_SECONDS)
        return timedelta(seconds=min(max(seconds, retry_after or 0.0), LONGEST_WAIT_SECONDS))


class WebhookDispatcher:
    """Background work of every replica; one of them at a time delivers to a webhook.

    Events are sent in their order while the receiver accepts them. After a failure a later event may arrive first, so receivers go by
    the numbers. An event is delivered at least once: a replica that dies between the answer and its commit leaves the event to be
    sent again with the same `webhook-id`.
    """

    def __init__(self, dependencies: Dependencies, caller: WebhookCaller, retry: RetryPolicy) -> None:
        self._dependencies, self._caller, self._retry = dependencies, caller, retry
        self._deliveries: dict[str, asyncio.Task[None]] = {}

    async def run_due(self) -> None:
        """Start delivering to every webhook that has a delivery due, without waiting for it."""
        async with self._dependencies.database.read_only() as work:
            due = await work.webhooks.due(self._dependencies.clock())
        for name in due:
            if name not in self._deliveries:
                self._deliveries[name] = asyncio.create_task(self._deliver_all(name))

    async def stop(self) -> None:
        """Cancel the deliveries under way; the next start, or another replica, repeats them."""
        for delivery in (deliveries := list(self._deliveries.values())):
            delivery.cancel()
        if deliveries:
            await asyncio.wait(deliveries)

    async def _deliver_all(self, name: str) -> None:
        try:
            while await self._deliver_batch(name):
                pass
        except Unavailable:
            await log.awarning("webhook delivery waits for the database", webhook=name)
        except UnknownWebhook:
            await log.ainfo("webhook was removed during delivery", webhook=name)
        except Exception:  # noqa: BLE001  # it must not end the other deliveries; the next tick starts again
            await log.aexception("webhook delivery failed", webhook=name)
        finally:
            del self._deliveries[name]

    async def _deliver_batch(self, name: str) -> bool:
        """Send the deliveries that are due until one fails; return whether there may be more."""
        now = self._dependencies.clock()
        async with self._dependencies.database.unit_of_work() as work:
            if not await work.webhooks.claim(name, now, self._claim_end(now)):
                return False
            webhook, due = await work.webhooks.get(name), await work.webhooks.pending(name, now, BATCH_SIZE)
            await work.commit()
        delivered = 0
        for delivery in due:
            if (await self._attempt(webhook, delivery)).state is DeliveryState.PENDING:
                break
            delivered += 1
        if delivered < len(due):
            await self._postpone(name, due[delivered + 1 :])
        async with self._dependencies.database.unit_of_work() as work:
            await work.webhooks.release(name)
            await work.commit()
        return bool(due) and delivered == len(due)

    async def _attempt(self, webhook: Webhook, delivery: Delivery) -> Delivery:
        answer = await self._send(webhook, delivery)
        after = outcome(delivery, answer, self._dependencies.clock(), self._retry)
        async with self._dependencies.database.unit_of_work() as work:
            await work.webhooks.settle(webhook.name, after, self._claim_end(self._dependencies.clock()))
            await work.commit()
        outcome_label = "retried" if after.state is DeliveryState.PENDING else after.state.value
        self._dependencies.metrics.webhook_attempts.labels(outcome_label).inc()
        await log.ainfo(
            "webhook attempt", webhook=webhook.name, number=delivery.happening.number, outcome=outcome_label, status=answer.status
        )
        return after

    async def _send(self, webhook: Webhook, delivery: Delivery) -> WebhookResponse:
        """Send once. An error of any kind is the outcome of the attempt, so that no event is attempted for ever or keeps later ones."""
        try:
            body = body_of(delivery)
            headers = headers_of(webhook, delivery, body, self._dependencies.clock())
            return await self._caller.post(webhook.url, body, headers)
        except Exception as reason:  # noqa: BLE001  # see above
            await log.aexception("webhook attempt failed", webhook=webhook.name, number=delivery.happening.number)
            return WebhookResponse(None, type(reason).__name__)

    async def _postpone(self, name: str, deliveries: list[Delivery]) -> None:
        """Let the deliveries behind a failed one wait as long as a first retry, without counting an attempt."""
        now = self._dependencies.clock()
        async with self._dependencies.database.unit_of_work() as work:
            for delivery in deliveries:
                later = replace(delivery, next_at=now + self._retry.wait(1, None))
                await work.webhooks.settle(name, later, self._claim_end(now))
            await work.commit()

    def _claim_end(self, now: datetime) -> datetime:
        return now + timedelta(seconds=self._retry.timeout + CLAIM_MARGIN_SECONDS)


def body_of(delivery: Delivery) -> bytes:
    """Return the body in the format of the Standard Webhooks specification, the same at every attempt."""
    event = event_info(delivery.happening).model_dump(mode="json", exclude_none=True)
    payload = {"type": delivery.happening.kind.value, "timestamp": event["at"], "data": event}
    return json.dumps(payload, separators=(",", ":"), sort_keys=True).encode()


def headers_of(webhook: Webhook, delivery: Delivery, body: bytes, now: datetime) -> dict[str, str]:
    """Return the headers of the Standard Webhooks specification; `now` in UTC."""
    name = f"evt_{delivery.happening.number}"
    return {
        "Content-Type": "application/json",
        "webhook-id": name,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Signer(webhook.secret).sign(name, now, body.decode()),
    }


def outcome(delivery: Delivery, answer: WebhookResponse, now: datetime, retry: RetryPolicy) -> Delivery:
    """Return the delivery after an attempt: delivered, pending for a retry, or failed."""
    attempted = replace(delivery, attempts=delivery.attempts + 1, status=answer.status, error=answer.error, next_at=None)
    if answer.error is None:
        return replace(attempted, state=DeliveryState.DELIVERED, delivered_at=now)
    if attempted.attempts >= retry.attempts or answer.status == GONE:
        return replace(attempted, state=DeliveryState.FAILED)
    return replace(attempted, next_at=now + retry.wait(attempted.attempts, answer.retry_after))
