"""Events, webhooks and their deliveries, in SQL. Makes no decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Row, and_, delete, func, insert, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ifed.errors import AlreadyExists, UnknownWebhook
from ifed.messages.enums import RoundKind
from ifed.messages.events import DeliveryState, EventKind
from services.aggregator.domain.events import Delivery, DomainEvent, Webhook
from services.aggregator.storage.constraints import translate_integrity_errors
from services.aggregator.storage.tables import deliveries, events, webhooks

ADDING = 0x1FED1C2  # the lock that gives numbers in the order of commits
WAITING = deliveries.c.state == DeliveryState.PENDING.value


class EventRepository:
    """The repository of events, in one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, happenings: Sequence[DomainEvent]) -> list[DomainEvent]:
        if self._connection.dialect.name == "postgresql":
            await self._connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": ADDING})
        return [replace(one, number=await self._add(one)) for one in happenings]

    async def _add(self, one: DomainEvent) -> int:
        said = {"at": one.at, "kind": one.kind.value, "task": one.task, "round": one.round, "version": one.version}
        kind = None if one.round_kind is None else one.round_kind.value
        statement = insert(events).values(**said, round_kind=kind, reason=one.reason).returning(events.c.id)
        return int((await self._connection.execute(statement)).scalar_one())

    async def page(self, after: int, limit: int, task: str | None = None) -> list[DomainEvent]:
        statement = select(events).where(events.c.id > after).order_by(events.c.id).limit(limit)
        if task is not None:
            statement = statement.where(events.c.task == task)
        return [_happening(row) for row in await self._connection.execute(statement)]

    async def newest(self) -> int:
        return int((await self._connection.execute(select(func.coalesce(func.max(events.c.id), 0)))).scalar_one())


class WebhookRepository:
    """The repository of webhooks and of what is on its way to them, in one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, webhook: Webhook) -> None:
        kinds = None if webhook.kinds is None else [kind.value for kind in webhook.kinds]
        said = {"name": webhook.name, "url": webhook.url, "secret": webhook.secret, "created_at": webhook.created_at}
        async with translate_integrity_errors({"pk_webhooks": AlreadyExists(f"a webhook named {webhook.name!r} exists already")}):
            await self._connection.execute(insert(webhooks).values(**said, kinds=kinds, task=webhook.task))

    async def get(self, name: str) -> Webhook:
        row = (await self._connection.execute(select(webhooks).where(webhooks.c.name == name))).one_or_none()
        if row is None:
            raise _unknown_webhook(name)
        return _webhook(row)

    async def delete(self, name: str) -> None:
        if (await self._connection.execute(delete(webhooks).where(webhooks.c.name == name))).rowcount == 0:
            raise _unknown_webhook(name)

    async def page(self, after: str | None, limit: int) -> list[tuple[Webhook, int]]:
        waiting = select(func.count()).where(deliveries.c.webhook == webhooks.c.name, WAITING).scalar_subquery()
        statement = select(webhooks, waiting.label("pending")).where(webhooks.c.name > (after or ""))
        found = await self._connection.execute(statement.order_by(webhooks.c.name).limit(limit))
        return [(_webhook(row), row.pending) for row in found]

    async def all(self, *, lasting: bool = False) -> list[Webhook]:
        statement = select(webhooks).order_by(webhooks.c.name)
        if lasting:
            statement = statement.with_for_update(read=True, key_share=True)
        return [_webhook(row) for row in await self._connection.execute(statement)]

    async def queue(self, wanted: Sequence[tuple[str, DomainEvent]], now: datetime) -> None:
        if wanted:
            new = {"state": DeliveryState.PENDING.value, "attempts": 0, "next_at": now}
            await self._connection.execute(
                insert(deliveries), [{"webhook": name, "event": one.number, **new} for name, one in wanted]
            )

    async def due(self, now: datetime) -> list[str]:
        free = or_(webhooks.c.claimed_until.is_(None), webhooks.c.claimed_until <= now)
        joined = webhooks.join(deliveries, and_(deliveries.c.webhook == webhooks.c.name, WAITING, deliveries.c.next_at <= now))
        statement = select(webhooks.c.name).select_from(joined).where(free).distinct()
        return list((await self._connection.execute(statement)).scalars())

    async def claim(self, name: str, now: datetime, until: datetime) -> bool:
        free = or_(webhooks.c.claimed_until.is_(None), webhooks.c.claimed_until <= now)
        statement = update(webhooks).where(webhooks.c.name == name, free).values(claimed_until=until)
        return (await self._connection.execute(statement)).rowcount == 1

    async def release(self, name: str) -> None:
        await self._hold(name, None)

    async def _hold(self, name: str, until: datetime | None) -> None:
        await self._connection.execute(update(webhooks).where(webhooks.c.name == name).values(claimed_until=until))

    async def pending(self, name: str, now: datetime, limit: int) -> list[Delivery]:
        mine = and_(deliveries.c.webhook == name, WAITING, deliveries.c.next_at <= now)
        return await self._deliveries(mine, limit)

    async def settle(self, name: str, delivery: Delivery, until: datetime) -> None:
        said = {name: getattr(delivery, name) for name in ("attempts", "next_at", "status", "error", "delivered_at")}
        mine = and_(deliveries.c.webhook == name, deliveries.c.event == delivery.happening.number)
        await self._hold(name, until)  # locks the webhook first, as its removal does
        await self._connection.execute(update(deliveries).where(mine).values(state=delivery.state.value, **said))

    async def deliveries(self, name: str, after: int, limit: int) -> list[Delivery]:
        return await self._deliveries(and_(deliveries.c.webhook == name, deliveries.c.event > after), limit)

    async def _deliveries(self, which: Any, limit: int) -> list[Delivery]:
        said = (deliveries.c[name] for name in ("state", "attempts", "next_at", "status", "error", "delivered_at"))
        statement = select(events, *said).join(deliveries, deliveries.c.event == events.c.id).where(which)
        return [_delivery(row) for row in await self._connection.execute(statement.order_by(events.c.id).limit(limit))]


def _unknown_webhook(name: str) -> UnknownWebhook:
    return UnknownWebhook(f"there is no webhook named {name!r}")


def _happening(row: Row[Any]) -> DomainEvent:
    kind = None if row.round_kind is None else RoundKind(row.round_kind)
    return DomainEvent(EventKind(row.kind), row.at, row.task, row.round, kind, row.version, row.reason, row.id)


def _webhook(row: Row[Any]) -> Webhook:
    kinds = None if row.kinds is None else tuple(EventKind(kind) for kind in row.kinds)
    return Webhook(row.name, row.url, row.secret, row.created_at, kinds, row.task)


def _delivery(row: Row[Any]) -> Delivery:
    tried = row.attempts, row.next_at, row.status, row.error, row.delivered_at
    return Delivery(_happening(row), DeliveryState(row.state), *tried)
