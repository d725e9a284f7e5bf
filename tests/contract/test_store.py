"""The fake store, SQLite and Postgres sit the same suites."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.aggregator.migrate import migrate
from services.aggregator.settings import Settings
from services.aggregator.storage.database import Database, connect
from testing.factories import ADMIN_TOKEN
from tests.contract.events_contract import EventsContract
from tests.contract.parts_contract import PartsContract
from tests.contract.records_contract import RecordsContract
from tests.contract.rounds_contract import RoundsContract
from tests.fakes import FakeStore


async def ready(url: str) -> Database:
    database = connect(Settings(database_url=url, admin_token=ADMIN_TOKEN).database_url)
    await migrate(database.engine)
    return database


class Fake:
    @pytest.fixture
    def database(self) -> FakeStore:
        return FakeStore()


class Sqlite:
    @pytest.fixture
    async def database(self, sqlite_database: str) -> AsyncIterator[Database]:
        database = await ready(sqlite_database)
        yield database
        await database.close()


class Postgres:
    @pytest.fixture
    async def database(self, postgres_database: str) -> AsyncIterator[Database]:
        database = await ready(postgres_database)
        yield database
        await database.close()


class TestFakeRounds(Fake, RoundsContract): ...


class TestSqliteRounds(Sqlite, RoundsContract): ...


class TestPostgresRounds(Postgres, RoundsContract): ...


class TestFakeRecords(Fake, RecordsContract): ...


class TestSqliteRecords(Sqlite, RecordsContract): ...


class TestPostgresRecords(Postgres, RecordsContract): ...


class TestFakeEvents(Fake, EventsContract): ...


class TestSqliteEvents(Sqlite, EventsContract): ...


class TestPostgresEvents(Postgres, EventsContract): ...


class TestFakeParts(Fake, PartsContract): ...


class TestSqliteParts(Sqlite, PartsContract): ...


class TestPostgresParts(Postgres, PartsContract): ...
