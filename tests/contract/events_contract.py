"""What every store of events and webhooks does, fake or real."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from ifed.errors import AlreadyExists, UnknownWebhook
from ifed.messages.enums import RoundKind
from ifed.messages.events import DeliveryState, EventKind
from services.aggregator.domain.events import Delivery, DomainEvent, Webhook
from services.aggregator.storage.database import Database
from testing.factories import NOON

LATER = NOON + timedelta(minutes=1)


def happening(task: str = "sentiment", **changes: object) -> DomainEvent:
    fields = {"round": 1, "round_kind": RoundKind.CONTEXT, "version": 0, "reason": "because"}
    return DomainEvent(EventKind.ROUND_CLOSED, NOON, task, **(fields | changes))  # type: ignore[arg-type]


def webhook(name: str = "pager", **changes: object) -> Webhook:
    return Webhook(name, "https://example.org/x", "whsec_c2VjcmV0", NOON, **changes)  # type: ignore[arg-type]


async def queued(database: Database, count: int = 2) -> list[DomainEvent]:
    """Events on their way to the webhook `pager`."""
    async with database.unit_of_work() as work:
        await work.webhooks.add(webhook())
        kept = await work.events.add([happening() for _ in range(count)])
        await work.webhooks.queue([("pager", event) for event in kept], NOON)
        await work.commit()
    return kept


class EventsContract:
    """Events, webhooks, deliveries."""

    async def test_events_are_numbered_from_one_and_come_back_as_they_were_kept(self, database: Database) -> None:
        async with database.unit_of_work() as work:
            assert await work.events.newest() == 0
            kept = await work.events.add([happening(), happening("topics", round=None, round_kind=None, version=None, reason=None)])
            await work.commit()
        assert [event.number for event in kept] == [1, 2]
        async with database.read_only() as work:
            assert await work.events.page(0, 10) == kept
            assert await work.events.page(0, 1) == kept[:1]
            assert await work.events.page(1, 10) == kept[1:]
            assert await work.events.page(0, 10, "topics") == kept[1:]
            assert await work.events.newest() == 2

    async def test_a_transaction_that_does_not_commit_tells_nothing(self, database: Database) -> None:
        async with database.unit_of_work() as work:
            await work.events.add([happening()])
        async with database.read_only() as work:
            assert await work.events.page(0, 10) == []

    async def test_retention_deletes_old_events_and_neither_the_newest_nor_one_that_a_webhook_waits_for(
        self, database: Database
    ) -> None:
        first, waiting, third = await queued(database, 3)
        async with database.unit_of_work() as work:
            for event in (first, third):
                await work.webhooks.settle("pager", Delivery(event, DeliveryState.DELIVERED, attempts=1), NOON)
            newest = await work.events.add([happening("newest")])
            await work.commit()
        async with database.unit_of_work() as work:
            assert await work.events.delete_before(NOON, 10) == 0, "none is older"
            assert await work.events.delete_before(LATER, 1) == 1
            assert await work.events.delete_before(LATER, 10) == 1
            await work.commit()
        async with database.unit_of_work() as work:
            assert await work.events.page(0, 10) == [waiting, *newest]
            assert [delivery.happening for delivery in await work.webhooks.deliveries("pager", 0, 10)] == [waiting]
            assert [event.number for event in await work.events.add([happening()])] == [5]

    async def test_after_retention_nothing_else_may_delete_events(self, database: Database) -> None:
        async with database.unit_of_work() as work:
            await work.events.add([happening(), happening()])
            assert await work.events.delete_before(LATER, 10) == 1
            await work.commit()
        with pytest.raises(DBAPIError, match="the events only grow"):
            async with database.unit_of_work() as work:
                await work.connection.execute(text("DELETE FROM events"))

    async def test_a_webhook_comes_back_as_it_was_kept_and_its_name_is_taken_once(self, database: Database) -> None:
        some = webhook(kinds=(EventKind.ROUND_FAILED, EventKind.TASK_FAILED), task="sentiment")
        async with database.unit_of_work() as work:
            await work.webhooks.add(some)
            await work.webhooks.add(webhook("a"))
            await work.commit()
        async with database.read_only() as work:
            assert await work.webhooks.get("pager") == some
            assert await work.webhooks.all() == [webhook("a"), some]
            assert await work.webhooks.page("a", 1) == [(some, 0)]
        with pytest.raises(AlreadyExists):
            async with database.unit_of_work() as work:
                await work.webhooks.add(some)

    async def test_a_removed_webhook_takes_its_deliveries_with_it(self, database: Database) -> None:
        await queued(database)
        async with database.unit_of_work() as work:
            await work.webhooks.delete("pager")
            await work.commit()
        async with database.unit_of_work() as work:
            assert await work.webhooks.deliveries("pager", 0, 10) == []
            assert not await work.webhooks.claim("pager", NOON, LATER)
            for call in (work.webhooks.get, work.webhooks.delete):
                with pytest.raises(UnknownWebhook, match="pager"):
                    await call("pager")

    async def test_one_has_a_webhook_at_a_time_until_it_lets_go_or_its_claim_runs_out(self, database: Database) -> None:
        await queued(database)
        async with database.unit_of_work() as work:
            assert await work.webhooks.due(NOON) == ["pager"]
            assert await work.webhooks.claim("pager", NOON, LATER)
            await work.commit()
        async with database.unit_of_work() as work:
            assert await work.webhooks.due(NOON) == []
            assert not await work.webhooks.claim("pager", NOON, LATER)
            assert await work.webhooks.claim("pager", LATER, LATER + timedelta(minutes=1))
            await work.webhooks.release("pager")
            assert await work.webhooks.claim("pager", NOON, LATER)

    async def test_what_is_due_comes_oldest_first_and_what_was_settled_no_more(self, database: Database) -> None:
        first, second = await queued(database)
        tried = Delivery(first, attempts=1, next_at=LATER, status=500, error="HTTP 500")
        done = Delivery(second, DeliveryState.DELIVERED, attempts=1, status=204, delivered_at=NOON)
        async with database.unit_of_work() as work:
            assert await work.webhooks.pending("pager", NOON, 10) == [Delivery(event, next_at=NOON) for event in (first, second)]
            assert await work.webhooks.pending("pager", NOON - timedelta(seconds=1), 10) == []
            await work.webhooks.settle("pager", tried, NOON)
            await work.webhooks.settle("pager", done, NOON)
            await work.commit()
        async with database.read_only() as work:
            assert await work.webhooks.due(NOON) == []
            assert await work.webhooks.due(LATER) == ["pager"]
            assert await work.webhooks.pending("pager", LATER, 10) == [tried]
            assert await work.webhooks.deliveries("pager", 0, 10) == [tried, done]
            assert await work.webhooks.deliveries("pager", 1, 10) == [done]
            assert await work.webhooks.page(None, 10) == [(webhook(), 1)]

    async def test_a_given_up_delivery_waits_for_nothing(self, database: Database) -> None:
        (delivery,) = await queued(database, 1)
        given_up = replace(Delivery(delivery, attempts=3, status=None, error="ConnectError"), state=DeliveryState.FAILED)
        async with database.unit_of_work() as work:
            await work.webhooks.settle("pager", given_up, NOON)
            await work.commit()
        async with database.read_only() as work:
            assert await work.webhooks.due(LATER) == []
            assert await work.webhooks.deliveries("pager", 0, 10) == [given_up]
