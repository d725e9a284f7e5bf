"""The SQL of domain events, webhooks and their deliveries."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, delete, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ifed.errors import AlreadyExists, UnknownWebhook
from ifed.messages.enums import RoundKind
from ifed.messages.events import DeliveryState, EventKind
from services.aggregator.domain.events import Delivery, DomainEvent, Webhook
from services.aggregator.storage.constraints import translate_integrity_errors
from services.aggregator.storage.leases import is_free, set_lease
from services.aggregator.storage.rows import readable_page
from services.aggregator.storage.tables import deliveries, events, webhooks

ADVISORY_LOCK = 0x1FED1C2
_PENDING = deliveries.c.state == DeliveryState.PENDING.value
_ATTEMPT = ("attempts", "next_at", "status", "error", "delivered_at")


class EventRepository:
    """Domain events in the order of their commits. The table only grows, except by retention."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, happenings: Sequence[DomainEvent]) -> list[DomainEvent]:
        """Store events and return them with their numbers.

        This is the last thing a transaction does: from here to its commit no other transaction may add, so a reader never sees a
        number before a smaller one.
        """
        if self._connection.dialect.name == "postgresql":
            await self._connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": ADVISORY_LOCK})
        return [replace(event, number=await self._add(event)) for event in happenings]

    async def _add(self, event: DomainEvent) -> int:
        statement = insert(events).values(
            at=event.at,
            kind=event.kind.value,
            task=event.task,
            round=event.round,
            round_kind=None if event.round_kind is None else event.round_kind.value,
            version=event.version,
            reason=event.reason,
        )
        return int((await self._connection.execute(statement.returning(events.c.id))).scalar_one())

    async def page(self, after: int, limit: int, task: str | None = None) -> list[DomainEvent]:
        """Return up to `limit` events by number, those after `after`; of one task where it is named.

        One that cannot be read, such as of a kind that a later release added, is left out.
        """
        statement = select(events) if task is None else select(events).where(events.c.task == task)
        return await readable_page(self._connection, statement, events.c.id, after, limit, _event)

    async def delete_before(self, before: datetime, limit: int) -> int:
        """Delete up to `limit` events from before a time, with their finished deliveries; return their number.

        An event that a webhook still waits for stays, and so does the newest, whose number continues the order. For this transaction the
        trigger that refuses deletions is off, which only the owner of the table may do.
        """
        waits = select(deliveries.c.event).where(deliveries.c.event == events.c.id, _PENDING).exists()
        old = select(events.c.id).where(events.c.at < before, ~waits, events.c.id < select(func.max(events.c.id)).scalar_subquery())
        numbers = (await self._connection.scalars(old.order_by(events.c.id).limit(limit))).all()
        if not numbers:
            return 0
        async with self._deletions_allowed():
            # The numbers are a list of thousands at most; SQLite takes 32,766 of them.
            await self._connection.execute(delete(deliveries).where(deliveries.c.event.in_(numbers)))
            await self._connection.execute(delete(events).where(events.c.id.in_(numbers)))
        return len(numbers)

    @asynccontextmanager
    async def _deletions_allowed(self) -> AsyncIterator[None]:
        if self._connection.dialect.name == "postgresql":
            await self._connection.execute(text("ALTER TABLE events DISABLE TRIGGER events_only_grow"))
            yield
            await self._connection.execute(text("ALTER TABLE events ENABLE TRIGGER events_only_grow"))
            return
        query = text("SELECT sql FROM sqlite_master WHERE type = 'trigger' AND name = 'events_refuse_delete'")
        trigger = (await self._connection.execute(query)).scalar_one()
        await self._connection.execute(text("DROP TRIGGER events_refuse_delete"))
        yield
        await self._connection.execute(text(trigger))

    async def newest(self) -> int:
        """Return the highest number; 0 when there are no events."""
        return int((await self._connection.execute(select(func.coalesce(func.max(events.c.id), 0)))).scalar_one())


class WebhookRepository:
    """Webhooks and the deliveries of events to them."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, webhook: Webhook) -> None:
        """Store a new webhook.

        Raises:
            AlreadyExists: the name is taken.
        """
        kinds = None if webhook.kinds is None else [kind.value for kind in webhook.kinds]
        values = {"name": webhook.name, "url": webhook.url, "secret": webhook.secret, "created_at": webhook.created_at}
        async with translate_integrity_errors({"pk_webhooks": AlreadyExists(f"a webhook named {webhook.name!r} exists already")}):
            await self._connection.execute(insert(webhooks).values(**values, kinds=kinds, task=webhook.task))

    async def get(self, name: str) -> Webhook:
        """Return the webhook.

        Raises:
            UnknownWebhook: there is no webhook of this name.
        """
        row = (await self._connection.execute(select(webhooks).where(webhooks.c.name == name))).one_or_none()
        if row is None:
            raise _unknown_webhook(name)
        return _webhook(row)

    async def delete(self, name: str) -> None:
        """Remove a webhook with its deliveries.

        Raises:
            UnknownWebhook: there is no webhook of this name.
        """
        if (await self._connection.execute(delete(webhooks).where(webhooks.c.name == name))).rowcount == 0:
            raise _unknown_webhook(name)

    async def page(self, after: str | None, limit: int) -> list[tuple[Webhook, int]]:
        """Return up to `limit` webhooks by name, those after `after`, each with the number of its pending deliveries."""
        pending = select(func.count()).where(deliveries.c.webhook == webhooks.c.name, _PENDING).scalar_subquery()
        statement = select(webhooks, pending.label("pending")).where(webhooks.c.name > (after or ""))
        rows = await self._connection.execute(statement.order_by(webhooks.c.name).limit(limit))
        return [(_webhook(row), row.pending) for row in rows]

    async def all(self, *, lasting: bool = False) -> list[Webhook]:
        """Return all webhooks by name; with `lasting`, none of them can be removed before the transaction ends."""
        statement = select(webhooks).order_by(webhooks.c.name)
        if lasting:
            statement = statement.with_for_update(read=True, key_share=True)
        return [_webhook(row) for row in await self._connection.execute(statement)]

    async def queue(self, wanted: Sequence[tuple[str, DomainEvent]], now: datetime) -> None:
        """Store pending deliveries, pairs of a webhook and an event; they are due from `now` on."""
        if wanted:
            new = {"state": DeliveryState.PENDING.value, "attempts": 0, "next_at": now}
            await self._connection.execute(
                insert(deliveries), [{"webhook": name, "event": event.number, **new} for name, event in wanted]
            )

    async def due(self, now: datetime) -> list[str]:
        """Return the webhooks that have a delivery due and that no replica has claimed."""
        due = and_(deliveries.c.webhook == webhooks.c.name, _PENDING, deliveries.c.next_at <= now)
        statement = select(webhooks.c.name).select_from(webhooks.join(deliveries, due))
        return list((await self._connection.scalars(statement.where(is_free(webhooks.c.claimed_until, now)).distinct())).all())

    async def claim(self, name: str, now: datetime, until: datetime) -> bool:
        """Claim a webhook until `until`; return False when another replica holds it or it is gone."""
        free = webhooks.c.name == name, is_free(webhooks.c.claimed_until, now)
        return await set_lease(self._connection, webhooks.c.claimed_until, *free, until=until) == 1

    async def release(self, name: str) -> None:
        """End the claim."""
        await set_lease(self._connection, webhooks.c.claimed_until, webhooks.c.name == name, until=None)

    async def pending(self, name: str, now: datetime, limit: int) -> list[Delivery]:
        """Return up to `limit` deliveries to a webhook that are due now, the oldest event first."""
        return await self._deliveries(and_(deliveries.c.webhook == name, _PENDING, deliveries.c.next_at <= now), limit)

    async def settle(self, name: str, delivery: Delivery, until: datetime) -> None:
        """Write the outcome of an attempt, and renew the claim of the webhook."""
        # Removing a webhook locks it before its deliveries; this keeps the same order.
        await set_lease(self._connection, webhooks.c.claimed_until, webhooks.c.name == name, until=until)
        values = {column: getattr(delivery, column) for column in _ATTEMPT}
        same = deliveries.c.webhook == name, deliveries.c.event == delivery.happening.number
        await self._connection.execute(update(deliveries).where(*same).values(state=delivery.state.value, **values))

    async def deliveries(self, name: str, after: int, limit: int) -> list[Delivery]:
        """Return up to `limit` deliveries to a webhook by the number of the event, those after `after`."""
        return await self._deliveries(and_(deliveries.c.webhook == name, deliveries.c.event > after), limit)

    async def _deliveries(self, condition: ColumnElement[bool], limit: int) -> list[Delivery]:
        columns = (deliveries.c[name] for name in ("state", *_ATTEMPT))
        statement = select(events, *columns).join(deliveries, deliveries.c.event == events.c.id).where(condition)
        return [_delivery(row) for row in await self._connection.execute(statement.order_by(events.c.id).limit(limit))]


def _unknown_webhook(name: str) -> UnknownWebhook:
    return UnknownWebhook(f"there is no webhook named {name!r}")


def _event(row: Row[Any]) -> DomainEvent:
    kind = None if row.round_kind is None else RoundKind(row.round_kind)
    return DomainEvent(EventKind(row.kind), row.at, row.task, row.round, kind, row.version, row.reason, row.id)


def _webhook(row: Row[Any]) -> Webhook:
    kinds = None if row.kinds is None else tuple(EventKind(kind) for kind in row.kinds)
    return Webhook(row.name, row.url, row.secret, row.created_at, kinds, row.task)


def _delivery(row: Row[Any]) -> Delivery:
    return Delivery(_event(row), DeliveryState(row.state), **{name: getattr(row, name) for name in _ATTEMPT})
