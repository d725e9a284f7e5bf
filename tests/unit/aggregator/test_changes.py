"""Which domain events a transaction writes: what was loaded is compared with what was saved."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ifed.messages.enums import RoundKind, RoundState, TaskState
from ifed.messages.events import EventKind
from services.aggregator.domain.events import DomainEvent, Webhook
from services.aggregator.storage.changes import ChangeTracker
from services.aggregator.storage.database import Database
from testing.factories import NOON, aggregate, party, round_, task


def kinds(changes: ChangeTracker) -> list[EventKind]:
    return [event.kind for event in changes.take_events(NOON)]


def test_what_was_saved_without_being_loaded_is_new() -> None:
    changes = ChangeTracker()
    changes.task_saved(task())
    changes.round_saved(round_())
    assert kinds(changes) == [EventKind.TASK_CREATED, EventKind.ROUND_OPENED]


def test_ended_rounds_come_first_then_context_vectors_then_tasks_and_opened_rounds_last() -> None:
    changes = ChangeTracker()
    running, closing = task(), round_(2, RoundKind.CALIBRATION)
    changes.task_loaded(running)
    changes.round_loaded(closing)
    running.state, running.served = TaskState.RUNNING, 1
    closing.state = RoundState.CLOSED
    changes.round_saved(round_(3))
    changes.task_saved(running)
    changes.context_added(aggregate(2))
    changes.round_saved(closing)
    assert kinds(changes) == [
        EventKind.ROUND_CLOSED,
        EventKind.CONTEXT_REVISED,
        EventKind.ADAPTER_PROMOTED,
        EventKind.TASK_STARTED,
        EventKind.ROUND_OPENED,
    ]


def test_what_was_changed_and_not_saved_makes_no_event() -> None:
    changes = ChangeTracker()
    loaded = changes.task_loaded(task())
    loaded.state = TaskState.RUNNING
    assert kinds(changes) == []


def test_a_round_that_is_loaded_again_is_compared_with_the_first_load() -> None:
    changes = ChangeTracker()
    loaded = changes.round_loaded(round_())
    loaded.state = RoundState.CANCELLED
    changes.round_loaded(loaded)
    changes.round_saved(loaded)
    assert kinds(changes) == [EventKind.ROUND_CANCELLED]


def test_a_change_is_reported_once() -> None:
    changes = ChangeTracker()
    changes.task_saved(task())
    assert kinds(changes) == [EventKind.TASK_CREATED]
    changes.task_saved(task())
    assert kinds(changes) == []


def test_a_task_that_takes_the_name_of_a_deleted_one_is_new() -> None:
    changes = ChangeTracker()
    changes.task_loaded(task())
    changes.task_deleted("sentiment")
    changes.task_saved(task())
    assert kinds(changes) == [EventKind.TASK_DELETED, EventKind.TASK_CREATED]


class Listener:
    def __init__(self) -> None:
        self.events: list[DomainEvent] = []

    async def __call__(self, events: Sequence[DomainEvent]) -> None:
        self.events += events


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def database(migrated_sqlite: Database, listener: Listener) -> Database:
    return Database(migrated_sqlite.engine, clock=lambda: NOON, listener=listener)


async def test_events_and_deliveries_are_committed_with_what_they_report_and_then_told(
    database: Database, listener: Listener
) -> None:
    async with database.unit_of_work() as work:
        await work.webhooks.add(Webhook("all", "https://example.org/", "secret", NOON))
        await work.webhooks.add(Webhook("rounds", "https://example.org/", "secret", NOON, (EventKind.ROUND_OPENED,)))
        await work.tasks.add(task())
        await work.commit()
        assert listener.events == [], "the connection is not free yet"
    async with database.read_only() as work:
        stored = await work.events.page(0, 10)
        assert [(event.number, event.kind, event.at) for event in stored] == [(1, EventKind.TASK_CREATED, NOON)]
        assert [delivery.happening for delivery in await work.webhooks.pending("all", NOON, 10)] == stored
        assert await work.webhooks.pending("rounds", NOON, 10) == []
    assert listener.events == stored


@pytest.mark.parametrize("commit", [True, False])
async def test_a_transaction_without_events_or_without_a_commit_tells_nobody(
    database: Database, listener: Listener, *, commit: bool
) -> None:
    async with database.unit_of_work() as work:
        if commit:
            await work.parties.add(party("a"))
            await work.commit()
        else:
            await work.tasks.add(task())
    assert listener.events == []
