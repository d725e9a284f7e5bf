"""The stream of events over real connections: every kind, any replica, resumed, ended with the process; on both stacks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from typer.testing import CliRunner

from ifed.cli.main import app as command_line
from ifed.clients import AggregatorClient
from ifed.errors import Forbidden, Malformed
from ifed.messages.events import Event
from services.aggregator.settings import Settings
from services.aggregator.storage.database import connect
from testing.factories import ADMIN_TOKEN, context_body, join_request, spec
from testing.servers import free_port
from tests.integration.aggregator.deployment import TASK, SimulatedClient, settings
from tests.integration.aggregator.listening import Listening, listening

PLAN = [
    ("task.created", None),
    ("task.started", None),
    ("round.opened", 1),
    ("round.closed", 1),
    ("round.opened", 2),
    ("round.closed", 2),
    ("adapter.promoted", None),
    ("round.opened", 3),
    ("round.closed", 3),
    ("adapter.promoted", None),
    ("task.finished", None),
]


@pytest.fixture
async def served(stack: Settings) -> AsyncIterator[Listening]:
    async with listening(stack) as made:
        yield made


@pytest.fixture
async def alone(current_sqlite: str) -> AsyncIterator[Listening]:
    """On SQLite, for what does not depend on the stack."""
    async with listening(settings(current_sqlite)) as made:
        yield made


async def run_a_task(made: Listening, name: str = TASK) -> None:
    """A task of one client and one round, from its definition to its end."""
    async with made.admin() as admin:
        await admin.create_task(spec(name, clients_expected=1, rounds=1))
        await admin.start(name)
        token = (await admin.enrol(f"client-of-{name}")).token
        async with SimulatedClient(made.app, "a", token, value=1.0, examples=1) as client:
            await client.run(name)


async def first(stream: AsyncIterator[Event], count: int) -> list[Event]:
    events = []
    async with asyncio.timeout(20):
        async for event in stream:
            events.append(event)
            if len(events) == count:
                break
    await stream.aclose()  # type: ignore[attr-defined]  # it is a generator
    return events


def told(events: list[Event]) -> list[tuple[str, int | None]]:
    return [(event.kind.value, event.round) for event in events]


async def test_whoever_listens_is_told_a_task_from_its_definition_to_its_end(served: Listening) -> None:
    async with served.admin() as admin:
        listener = asyncio.create_task(first(admin.events(), len(PLAN)))
        await held(served, 1)
        await run_a_task(served)
        events = await listener
    assert told(events) == PLAN
    assert [event.number for event in events] == list(range(1, len(PLAN) + 1))
    assert {event.task for event in events} == {TASK}
    assert [event.version for event in events if event.kind == "adapter.promoted"] == [0, 1]


async def test_a_context_vector_that_changes_after_the_end_and_one_that_cannot_be_made_are_told(served: Listening) -> None:
    await run_a_task(served)
    async with served.admin() as admin:
        name = (await admin.task(TASK)).members[0].client
        token = (await admin.rotate(name)).token
        async with AggregatorClient(served.url, token) as client:
            await client.add_context(TASK, context_body(4.0, examples=2))
            (revised,) = await first(admin.events(after=len(PLAN)), 1)
            await client.withdraw(TASK)
            (withdrawn,) = await first(admin.events(after=revised.number), 1)
            token = (await admin.enrol("late")).token
            async with SimulatedClient(served.app, "late", token, value=3.0, examples=1) as late:
                await late.run(TASK)
            after = await first(admin.events(after=withdrawn.number), 2)
    assert [(event.kind, event.version) for event in (revised, withdrawn, *after)] == [
        ("context.revised", 2),
        ("adapter.withdrawn", 1),
        ("context.revised", 3),
        ("adapter.promoted", 1),
    ]
    assert "without those who withdrew" in str(withdrawn.reason)
    assert after[-1].reason is None


async def held(made: Listening, streams: int) -> None:
    """Wait until so many streams are open."""
    async with asyncio.timeout(10), httpx.AsyncClient() as http:
        while f'ifed_long_polls{{task="*"}} {float(streams)}' not in (await http.get(f"{made.url}/metrics")).text:
            await asyncio.sleep(0.02)


async def test_a_stream_goes_on_after_the_last_event_that_was_seen(served: Listening) -> None:
    await run_a_task(served)
    async with served.admin() as admin:
        everything = await first(admin.events(after=0), len(PLAN))
        assert await first(admin.events(after=everything[3].number), len(PLAN) - 4) == everything[4:]
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}", "Last-Event-ID": "10"}
    async with httpx.AsyncClient() as http, http.stream("GET", f"{served.url}/v1/events?after=0", headers=headers) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        lines = [line async for _, line in numbered(answer.aiter_lines(), 7)]
    assert lines[:2] == [": following", "id: 10"]
    assert lines[3] == "event: task.finished"
    assert lines[5] == "id: 11"


async def numbered(lines: AsyncIterator[str], count: int) -> AsyncIterator[tuple[int, str]]:
    rank = 0
    async for line in lines:
        yield rank, line
        rank += 1
        if rank == count:
            return


async def test_a_stream_of_one_task_tells_nothing_of_another(alone: Listening) -> None:
    await run_a_task(alone, "topics")
    await run_a_task(alone)
    async with alone.admin() as admin:
        assert {event.task for event in await first(admin.events(after=0, task=TASK), len(PLAN))} == {TASK}


async def test_a_round_that_fails_or_is_cancelled_and_a_way_back_are_told_with_the_reason(served: Listening) -> None:
    async with served.admin() as admin:
        await admin.create_task(spec(deadline_seconds=0.3))
        await admin.start(TASK)
        for name in ("a", "b"):
            token = (await admin.enrol(name)).token
            async with AggregatorClient(served.url, token) as client:
                await client.join(TASK, join_request())
        events = await first(admin.events(after=0), 5)
    assert told(events)[2:] == [("round.opened", 1), ("round.failed", 1), ("task.failed", None)]
    assert "missing: a, b" in str(events[3].reason)


async def test_a_stream_ends_when_the_process_stops_and_its_client_goes_on_at_the_next(stack: Settings) -> None:
    port = free_port()
    async with AggregatorClient(f"http://127.0.0.1:{port}", ADMIN_TOKEN) as admin:
        async with listening(stack, port=port) as restarted:
            listener = asyncio.create_task(first(admin.events(), len(PLAN)))
            await held(restarted, 1)
            began = time.monotonic()
        assert time.monotonic() - began < 5, "a stopping server waits for no stream"
        async with listening(stack, port=port) as two:
            await run_a_task(two)
            assert told(await listener) == PLAN


async def test_an_event_on_one_replica_wakes_a_stream_on_another(current_postgres: str, redis_url: str, redis_prefix: str) -> None:
    # The truth is looked at every minute only, so what comes sooner came by the wake-up.
    configuration = settings(current_postgres, redis_url=redis_url, redis_prefix=redis_prefix, recheck_seconds=60.0)
    async with listening(configuration) as replica, listening(configuration) as two, two.admin() as admin:
        listener = asyncio.create_task(first(admin.events(), 1))
        await held(two, 1)
        async with replica.admin() as other:
            await other.create_task(spec())
        assert told(await listener) == PLAN[:1]


async def test_numbers_come_in_the_order_of_commits_while_many_replicas_write(current_postgres: str) -> None:
    configuration = settings(current_postgres)
    async with listening(configuration) as replica, listening(configuration) as two, replica.admin() as admin:
        listener = asyncio.create_task(first(admin.events(after=0), 20))

        async def define(made: Listening, rank: int) -> None:
            async with made.admin() as other:
                await other.create_task(spec(f"task-{rank}"))

        await asyncio.gather(*(define(made, rank) for rank, made in enumerate([replica, two] * 10)))
        events = await listener
    assert [event.number for event in events] == list(range(1, 21)), "none was skipped and none came late"


async def test_who_is_no_admin_and_what_is_no_number_is_refused_before_the_stream_begins(alone: Listening) -> None:
    async with alone.admin() as admin:
        token = (await admin.enrol("a")).token
        with pytest.raises(Malformed):
            await first(admin.events(after=-1), 1)
    async with AggregatorClient(alone.url, token) as client:
        with pytest.raises(Forbidden):
            await first(client.events(), 1)


@pytest.mark.parametrize("statement", ["UPDATE events SET task = 'other'", "DELETE FROM events"])
async def test_the_database_refuses_to_change_what_happened(served: Listening, stack: Settings, statement: str) -> None:
    async with served.admin() as admin:
        await admin.create_task(spec())
    database = connect(stack.database_url)
    with pytest.raises(DBAPIError, match="the events only grow"):
        async with database.engine.begin() as connection:
            await connection.execute(text(statement))
    await database.close()


async def test_a_start_with_a_retention_deletes_old_events_and_a_stream_begins_with_what_is_left(current_sqlite: str) -> None:
    async with listening(settings(current_sqlite)) as made:
        await run_a_task(made)
    async with listening(settings(current_sqlite, event_retention_days=1e-9)) as made, made.admin() as admin:
        (newest,) = await first(admin.events(after=len(PLAN) - 1), 1)
        async with asyncio.timeout(10):
            while [event.number for event in await first(admin.events(after=0), 1)] != [newest.number]:
                await asyncio.sleep(0.02)
    assert newest.number == len(PLAN)


async def test_the_command_tells_what_happened(current_sqlite: str) -> None:
    async with listening(settings(current_sqlite)) as made:
        await run_a_task(made)
        options = {"IFED_TOKEN": ADMIN_TOKEN, "IFED_AGGREGATOR_URL": made.url}
        words = ["events", "--after", "0", "--count", str(len(PLAN))]
        plain = await asyncio.to_thread(CliRunner().invoke, command_line, words, env=options)
        lines = await asyncio.to_thread(CliRunner().invoke, command_line, [*words, "--json"], env=options)
    assert [line.split()[3] for line in plain.output.splitlines()] == [kind for kind, _ in PLAN]
    assert "sentiment round 1 (context) version 0" in plain.output
    assert [Event.model_validate_json(line).kind.value for line in lines.output.splitlines()] == [kind for kind, _ in PLAN]
