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


async def test_the_migrations_make_exactly_the_tables_of_the_code(empty_stack: Settings) -> None:
    database = connect(empty_stack.database_url)
    await migrate(database.engine)
    async with database.engine.connect() as connection:
        assert await connection.run_sync(differences) == []
        assert await connection.run_sync(names) == {*metadata.tables, "alembic_version"}
    await database.close()


async def test_replicas_that_start_at_once_migrate_once(empty_stack: Settings) -> None:
    databases = [connect(empty_stack.database_url) for _ in range(4)]
    await asyncio.gather(*(migrate(database.engine) for database in databases))
    async with databases[0].engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    for database in databases:
        await database.close()


async def downgrade(engine: AsyncEngine) -> set[str]:
    async with engine.begin() as connection:
        await connection.run_sync(lambda sync: command.downgrade(configuration(sync), "base"))
    async with engine.connect() as connection:
        return await connection.run_sync(names)


async def test_the_migrations_can_be_taken_back_and_made_again(empty_stack: Settings) -> None:
    database = connect(empty_stack.database_url)
    await migrate(database.engine)
    assert await downgrade(database.engine) == {"alembic_version"}
    await migrate(database.engine)
    assert await database.state() == "ok"
    await database.close()


async def test_a_database_without_tables_says_what_to_run(empty_stack: Settings) -> None:
    database = connect(empty_stack.database_url)
    assert await database.state() == "has no tables; run python -m services.aggregator.migrate"
    await database.close()


async def test_who_waits_for_the_schema_goes_on_once_another_process_made_it(empty_stack: Settings) -> None:
    database, other = connect(empty_stack.database_url), connect(empty_stack.database_url)
    assert not await wait(database.engine, seconds=0)
    waiting = asyncio.create_task(wait(database.engine, seconds=30))
    await migrate(other.engine)
    assert await waiting
    await other.close()
    await database.close()


async def test_who_waits_is_not_content_with_the_schema_of_an_earlier_release(empty_stack: Settings) -> None:
    database = connect(empty_stack.database_url)
    async with database.engine.begin() as connection:
        await connection.run_sync(lambda sync: upgrade(sync, "0002"))
    assert not await wait(database.engine, seconds=0)
    await migrate(database.engine)
    assert await wait(database.engine, seconds=0)
    await database.close()


async def test_a_release_that_goes_back_starts_on_the_schema_of_the_later_one(empty_stack: Settings) -> None:
    database = connect(empty_stack.database_url)
    await migrate(database.engine)
    async with database.engine.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    assert await wait(database.engine, seconds=0)
    await database.close()


@pytest.mark.parametrize("url", ["postgresql+asyncpg://nobody@127.0.0.1:1/nothing", "sqlite+aiosqlite:////nowhere/at/all.sqlite3"])
async def test_a_database_that_is_not_there_says_so(url: str) -> None:
    database = connect(url)
    assert await database.state() == "cannot be reached"
    assert not await wait(database.engine, seconds=0)
    await database.close()
