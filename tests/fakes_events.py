"""Events and webhooks in memory, for the fake store. They sit the same contract suites as the real ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from ifed.errors import AlreadyExists, UnknownWebhook
from ifed.messages.events import DeliveryState
from services.aggregator.domain.events import Delivery, DomainEvent, Webhook

if TYPE_CHECKING:
    from tests.fakes import Rows


class FakeEvents:
    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    async def add(self, happenings: Sequence[DomainEvent]) -> list[DomainEvent]:
        kept = [replace(one, number=len(self._rows.events) + rank) for rank, one in enumerate(happenings, start=1)]
        self._rows.events += kept
        return kept

    async def page(self, after: int, limit: int, task: str | None = None) -> list[DomainEvent]:
        return [one for one in self._rows.events[after:] if task in (None, one.task)][:limit]

    async def newest(self) -> int:
        return len(self._rows.events)


class FakeWebhooks:
    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    async def add(self, webhook: Webhook) -> None:
        if webhook.name in self._rows.webhooks:
            raise AlreadyExists(f"a webhook named {webhook.name!r} exists already")
        self._rows.webhooks[webhook.name] = webhook

    async def get(self, name: str) -> Webhook:
        if name not in self._rows.webhooks:
            raise UnknownWebhook(f"there is no webhook named {name!r}")
        return self._rows.webhooks[name]

    async def delete(self, name: str) -> None:
        await self.get(name)
        del self._rows.webhooks[name]
        self._rows.webhook_claims.pop(name, None)
        for key in [key for key in self._rows.deliveries if key[0] == name]:
            del self._rows.deliveries[key]

    async def page(self, after: str | None, limit: int) -> list[tuple[Webhook, int]]:
        names = sorted(name for name in self._rows.webhooks if name > (after or ""))[:limit]
        return [(self._rows.webhooks[name], len(self._waiting(name))) for name in names]

    async def all(self, *, lasting: bool = False) -> list[Webhook]:
        return [self._rows.webhooks[name] for name in sorted(self._rows.webhooks)]

    async def queue(self, wanted: Sequence[tuple[str, DomainEvent]], now: datetime) -> None:
        for name, one in wanted:
            assert one.number is not None
            self._rows.deliveries[name, one.number] = Delivery(one, next_at=now)

    async def due(self, now: datetime) -> list[str]:
        return [name for name in sorted(self._rows.webhooks) if self._free(name, now) and await self.pending(name, now, 1)]

    async def claim(self, name: str, now: datetime, until: datetime) -> bool:
        if name not in self._rows.webhooks or not self._free(name, now):
            return False
        self._rows.webhook_claims[name] = until
        return True

    async def release(self, name: str) -> None:
        self._rows.webhook_claims.pop(name, None)

    async def pending(self, name: str, now: datetime, limit: int) -> list[Delivery]:
        return [one for one in self._waiting(name) if one.next_at is not None and one.next_at <= now][:limit]

    async def settle(self, name: str, delivery: Delivery, until: datetime) -> None:
        assert delivery.happening.number is not None
        self._rows.deliveries[name, delivery.happening.number] = delivery
        self._rows.webhook_claims[name] = until

    async def deliveries(self, name: str, after: int, limit: int) -> list[Delivery]:
        return [one for (receiver, number), one in sorted_items(self._rows) if receiver == name and number > after][:limit]

    def _waiting(self, name: str) -> list[Delivery]:
        mine = [one for (receiver, _), one in sorted_items(self._rows) if receiver == name]
        return [one for one in mine if one.state is DeliveryState.PENDING]

    def _free(self, name: str, now: datetime) -> bool:
        return self._rows.webhook_claims.get(name, now) <= now


def sorted_items(rows: Rows) -> list[tuple[tuple[str, int], Delivery]]:
    return sorted(rows.deliveries.items(), key=lambda item: item[0])
