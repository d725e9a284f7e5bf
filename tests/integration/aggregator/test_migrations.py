"""The migrations make the tables of `tables.py`, on both databases, once, and can be taken back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.aggregator.migrate import configuration, migrate, upgrade, wait
from services.aggregator.settings import Settings
from services.aggregator.storage.database import connect
from services.aggregator.storage.tables import metadata


def differences(connection: Connection) -> list[Any]:
    context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
    return list(compare_metadata(context, metadata))


def names(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names())


async def test_the_migrations_make_exactly_the_tables_of_the_code(stack: Settings) -> None:
    store = connect(stack.database_url)
    await migrate(store.engine)
    async with store.engine.connect() as connection:
        assert await connection.run_sync(differences) == []
        assert await connection.run_sync(names) == {*metadata.tables, "alembic_version"}
    await store.close()


async def test_replicas_that_start_at_once_migrate_once(stack: Settings) -> None:
    stores = [connect(stack.database_url) for _ in range(4)]
    await asyncio.gather(*(migrate(store.engine) for store in stores))
    async with stores[0].engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    for store in stores:
        await store.close()


async def downgrade(engine: AsyncEngine) -> set[str]:
    async with engine.begin() as connection:
        await connection.run_sync(lambda sync: command.downgrade(configuration(sync), "base"))
    async with engine.connect() as connection:
        return await connection.run_sync(names)


async def test_the_migrations_can_be_taken_back_and_made_again(stack: Settings) -> None:
    store = connect(stack.database_url)
    await migrate(store.engine)
    assert await downgrade(store.engine) == {"alembic_version"}
    await migrate(store.engine)
    assert await store.state() == "ok"
    await store.close()


async def test_a_database_without_tables_says_what_to_run(stack: Settings) -> None:
    store = connect(stack.database_url)
    assert await store.state() == "has no tables; run python -m services.aggregator.migrate"
    await store.close()


async def test_who_waits_for_the_schema_goes_on_once_another_process_made_it(stack: Settings) -> None:
    store, other = connect(stack.database_url), connect(stack.database_url)
    assert not await wait(store.engine, seconds=0)
    waiting = asyncio.create_task(wait(store.engine, seconds=30))
    await migrate(other.engine)
    assert await waiting
    await other.close()
    await store.close()


async def test_who_waits_is_not_content_with_the_schema_of_an_earlier_release(stack: Settings) -> None:
    store = connect(stack.database_url)
    async with store.engine.begin() as connection:
        await connection.run_sync(lambda sync: upgrade(sync, "0002"))
    assert not await wait(store.engine, seconds=0)
    await migrate(store.engine)
    assert await wait(store.engine, seconds=0)
    await store.close()


async def test_a_release_that_goes_back_starts_on_the_schema_of_the_later_one(stack: Settings) -> None:
    store = connect(stack.database_url)
    await migrate(store.engine)
    async with store.engine.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    assert await wait(store.engine, seconds=0)
    await store.close()


@pytest.mark.parametrize("url", ["postgresql+asyncpg://nobody@127.0.0.1:1/nothing", "sqlite+aiosqlite:////nowhere/at/all.sqlite3"])
async def test_a_database_that_is_not_there_says_so(url: str) -> None:
    store = connect(url)
    assert await store.state() == "cannot be reached"
    assert not await wait(store.engine, seconds=0)
    await store.close()
