"""The repositories on SQLite and on Postgres."""

from __future__ import annotations

import pytest

from services.aggregator.storage.database import Database
from tests.contract.context_parts_contract import PartsContract
from tests.contract.events_contract import EventsContract
from tests.contract.heads_contract import HeadsContract
from tests.contract.records_contract import RecordsContract
from tests.contract.rounds_contract import RoundsContract


class Sqlite:
    @pytest.fixture
    def database(self, migrated_sqlite: Database) -> Database:
        return migrated_sqlite


class Postgres:
    @pytest.fixture
    def database(self, migrated_postgres: Database) -> Database:
        return migrated_postgres


class TestSqliteRounds(Sqlite, RoundsContract): ...


class TestPostgresRounds(Postgres, RoundsContract): ...


class TestSqliteRecords(Sqlite, RecordsContract): ...


class TestPostgresRecords(Postgres, RecordsContract): ...


class TestSqliteEvents(Sqlite, EventsContract): ...


class TestPostgresEvents(Postgres, EventsContract): ...


class TestSqliteParts(Sqlite, PartsContract): ...


class TestPostgresParts(Postgres, PartsContract): ...


class TestSqliteHeads(Sqlite, HeadsContract): ...


class TestPostgresHeads(Postgres, HeadsContract): ...
