"""Databases with the current schema, copied for each test from a template that is migrated once a session."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from services.aggregator.migrate import migrate
from services.aggregator.settings import Settings
from services.aggregator.storage.database import Database, connect
from testing.factories import ADMIN_TOKEN


def connected(url: str) -> Database:
    """Connect to the database at a URL, written as in DATABASE_URL."""
    return connect(Settings(database_url=url, admin_token=ADMIN_TOKEN).database_url)


async def _migrate(url: str) -> None:
    database = connected(url)
    await migrate(database.engine)
    await database.close()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file, the template of each test's copy."""
    path = tmp_path_factory.mktemp("template") / "ifed.sqlite3"
    asyncio.run(_migrate(f"sqlite:///{path}"))
    return path


@pytest.fixture
def current_sqlite(sqlite_template: Path, tmp_path: Path) -> str:
    """The URL of a SQLite database of this test's own with the current schema."""
    path = tmp_path / "ifed.sqlite3"
    shutil.copyfile(sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture
async def migrated_sqlite(current_sqlite: str) -> AsyncIterator[Database]:
    """The same, connected."""
    database = connected(current_sqlite)
    yield database
    await database.close()


@pytest.fixture(scope="session")
def postgres_template(postgres_url: str) -> Iterator[str]:
    """The name of a migrated Postgres database, the template of each test's copy."""
    name = f"ifed_template_{uuid4().hex}"

    async def execute(statement: str) -> None:
        server = await asyncpg.connect(postgres_url)
        await server.execute(statement)
        await server.close()

    asyncio.run(execute(f"CREATE DATABASE {name}"))
    asyncio.run(_migrate(postgres_url.rsplit("/", 1)[0] + f"/{name}"))
    yield name
    asyncio.run(execute(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
async def current_postgres(postgres_url: str, postgres_template: str) -> AsyncIterator[str]:
    """The URL of a Postgres database of this test's own with the current schema, dropped afterwards."""
    name = f"ifed_test_{uuid4().hex}"
    server = await asyncpg.connect(postgres_url)
    await server.execute(f"CREATE DATABASE {name} TEMPLATE {postgres_template}")
    yield postgres_url.rsplit("/", 1)[0] + f"/{name}"
    await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await server.close()


@pytest.fixture
async def migrated_postgres(current_postgres: str) -> AsyncIterator[Database]:
    """The same, connected."""
    database = connected(current_postgres)
    yield database
    await database.close()
