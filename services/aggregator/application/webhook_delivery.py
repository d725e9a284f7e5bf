"""Brings events to webhooks: signs, sends, tries again, gives up. Knows no HTTP and no SQL; a dead receiver holds up nobody else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

import structlog
from standardwebhooks import Webhook as Signer

from ifed.clients.webhooks import Answer
from ifed.errors import Unavailable, UnknownWebhook
from ifed.messages.events import DeliveryState
from services.aggregator.application.dependencies import Dependencies
from services.aggregator.application.events import event_info
from services.aggregator.domain.events import Delivery, Webhook

log = structlog.get_logger(__name__)
AT_ONCE = 20
GONE = 410  # the receiver says that it wants nothing more of this
GROWTH = 4.0
LONGEST_SECONDS = 86_400.0
SLACK_SECONDS = 5.0


class Caller(Protocol):
    """Sends a body to an address."""

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer: ...


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long an event is tried.

    Attributes:
        timeout: seconds one attempt may take.
        first: seconds after the first attempt; four times as long after each further one, a day at the most.
        attempts: after so many it is given up.
    """

    timeout: float
    first: float
    attempts: int

    def after(self, attempts: int, asked: float | None) -> timedelta:
        """How long to wait after so many attempts, or as long as the receiver asked for if that is more."""
        wait = min(self.first * GROWTH ** min(attempts - 1, 30), LONGEST_SECONDS)
        return timedelta(seconds=min(max(wait, asked or 0.0), LONGEST_SECONDS))


class WebhookDispatcher:
    """The background work of every replica; a webhook is served by one of them at a time.

    Events go out in their order while the receiver takes them; after a failure a later one may come first, and the receiver goes by
    their numbers. An event is sent at least once: a replica that dies between the answer and its commit leaves it to be sent again, under the same
    `webhook-id`.
    """

    def __init__(self, dependencies: Dependencies, caller: Caller, patience: RetryPolicy) -> None:
        self._dependencies, self._caller, self._patience = dependencies, caller, patience
        self._rounds: dict[str, asyncio.Task[None]] = {}

    async def run_due(self) -> None:
        """Set out to every webhook that something is due for, without waiting for any."""
        async with self._dependencies.database.read_only() as work:
            due = await work.webhooks.due(self._dependencies.clock())
        for name in due:
            if name not in self._rounds:
                self._rounds[name] = asyncio.create_task(self._visit(name))

    async def stop(self) -> None:
        """Leave what was not answered to the next start, or to another replica."""
        for visit in (visits := list(self._rounds.values())):
            visit.cancel()
        if visits:
            await asyncio.wait(visits)

    async def _visit(self, name: str) -> None:
        try:
            while await self._deliver(name):
                pass
        except Unavailable:
            await log.awarning("a webhook waits for the database", webhook=name)
        except UnknownWebhook:
            await log.ainfo("a webhook was removed while it was served", webhook=name)
        except Exception:  # noqa: BLE001  # a visit ends with itself alone; the next tick sets out again
            await log.aexception("delivering to a webhook failed", webhook=name)
        finally:
            del self._rounds[name]

    async def _deliver(self, name: str) -> bool:
        """Send what is due until one fails or nothing is left; whether there may be more."""
        now = self._dependencies.clock()
        async with self._dependencies.database.unit_of_work() as work:
            if not await work.webhooks.claim(name, now, self._until(now)):
                return False
            webhook, due = await work.webhooks.get(name), await work.webhooks.pending(name, now, AT_ONCE)
            await work.commit()
        delivered = 0
        for one in due:
            if (await self._attempt(webhook, one)).state is DeliveryState.PENDING:
                break
            delivered += 1
        if delivered < len(due):
            await self._put_off(name, due[delivered + 1 :])
        async with self._dependencies.database.unit_of_work() as work:
            await work.webhooks.release(name)
            await work.commit()
        return bool(due) and delivered == len(due)

    async def _attempt(self, webhook: Webhook, delivery: Delivery) -> Delivery:
        now = self._dependencies.clock()
        body = body_of(delivery)
        answer = await self._caller.post(webhook.url, body, headers_of(webhook, delivery, body, now))
        after = outcome(delivery, answer, self._dependencies.clock(), self._patience)
        async with self._dependencies.database.unit_of_work() as work:
            await work.webhooks.settle(webhook.name, after, self._until(self._dependencies.clock()))
            await work.commit()
        said = "retried" if after.state is DeliveryState.PENDING else after.state.value
        self._dependencies.metrics.webhook_attempts.labels(said).inc()
        await log.ainfo("webhook", webhook=webhook.name, number=delivery.happening.number, outcome=said, status=answer.status)
        return after

    async def _put_off(self, name: str, behind: list[Delivery]) -> None:
        """What waits behind one that failed waits as long as the first try again takes, without an attempt being counted."""
        now = self._dependencies.clock()
        async with self._dependencies.database.unit_of_work() as work:
            for one in behind:
                later = replace(one, next_at=now + self._patience.after(1, None))
                await work.webhooks.settle(name, later, self._until(now))
            await work.commit()

    def _until(self, now: datetime) -> datetime:
        return now + timedelta(seconds=self._patience.timeout + SLACK_SECONDS)


def body_of(delivery: Delivery) -> bytes:
    """The same bytes at every attempt, in the form that the Standard Webhooks specification recommends."""
    event = event_info(delivery.happening).model_dump(mode="json", exclude_none=True)
    said = {"type": delivery.happening.kind.value, "timestamp": event["at"], "data": event}
    return json.dumps(said, separators=(",", ":"), sort_keys=True).encode()


def headers_of(webhook: Webhook, delivery: Delivery, body: bytes, now: datetime) -> dict[str, str]:
    """The headers of the Standard Webhooks specification; `now` in UTC."""
    name = f"evt_{delivery.happening.number}"
    return {
        "Content-Type": "application/json",
        "webhook-id": name,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Signer(webhook.secret).sign(name, now, body.decode()),
    }


def outcome(delivery: Delivery, answer: Answer, now: datetime, patience: RetryPolicy) -> Delivery:
    """The delivery after an attempt: delivered, tried again later, or given up."""
    tried = replace(delivery, attempts=delivery.attempts + 1, status=answer.status, error=answer.error, next_at=None)
    if answer.error is None:
        return replace(tried, state=DeliveryState.DELIVERED, delivered_at=now)
    if tried.attempts >= patience.attempts or answer.status == GONE:
        return replace(tried, state=DeliveryState.FAILED)
    return replace(tried, next_at=now + patience.after(tried.attempts, answer.retry_after))
