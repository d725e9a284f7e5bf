"""An aggregator that kills itself at a chosen commit: `python -m tests.faults.launcher before contribution`. For fault tests alone."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ifed.server import logs
from services.aggregator.app import serve
from services.aggregator.domain.aggregates import Aggregate
from services.aggregator.domain.contribution import Contribution
from services.aggregator.domain.round import Round
from services.aggregator.settings import Settings
from services.aggregator.storage.aggregates import AggregateRepository
from services.aggregator.storage.changes import ChangeTracker
from services.aggregator.storage.database import Database, UnitOfWork, create_engine
from services.aggregator.storage.rounds import RoundRepository

WRITTEN = ("contribution", "aggregate")


class WatchedRounds(RoundRepository):
    """The repository of rounds, which notes that a contribution was written."""

    def __init__(self, connection: AsyncConnection, changes: ChangeTracker, written: set[str]) -> None:
        super().__init__(connection, changes)
        self._written = written

    async def record(self, round_: Round, contribution: Contribution) -> None:
        self._written.add("contribution")
        await super().record(round_, contribution)


class WatchedAggregates(AggregateRepository):
    """The repository of aggregates, which notes that one was written."""

    def __init__(self, connection: AsyncConnection, changes: ChangeTracker, written: set[str]) -> None:
        super().__init__(connection, changes)
        self._written = written

    async def add_context(self, aggregate: Aggregate, body: bytes) -> None:
        self._written.add("aggregate")
        await super().add_context(aggregate, body)


class DyingWork(UnitOfWork):
    """A transaction after or before whose commit the process is gone, when `written` is what it is about."""

    def __init__(self, connection: AsyncConnection, moment: str, written: str) -> None:
        super().__init__(connection)
        self._moment, self._fatal, self._written = moment, written, set[str]()
        self.rounds = WatchedRounds(connection, self._changes, self._written)
        self.aggregates = WatchedAggregates(connection, self._changes, self._written)

    async def commit(self) -> None:
        self._die_if("before")
        await super().commit()
        self._die_if("after")

    def _die_if(self, moment: str) -> None:
        if (moment, {self._fatal}) == (self._moment, self._written):
            os.kill(os.getpid(), signal.SIGKILL)


class DyingDatabase(Database):
    """The database of an aggregator that dies `moment` (before, after) the first commit of a `written` (contribution, aggregate)."""

    def __init__(self, engine: AsyncEngine, moment: str, written: str, **options: Any) -> None:
        super().__init__(engine, **options)
        self._moment, self._written = moment, written

    def _begin(self, connection: AsyncConnection) -> UnitOfWork:
        return DyingWork(connection, self._moment, self._written)


def main() -> None:
    """Serve until the fault comes."""
    moment, written = sys.argv[1:]
    assert moment in ("before", "after")
    assert written in WRITTEN
    settings = Settings()
    logs.configure(settings.log_level, json_lines=settings.log_json)

    def storage(url: str, *, pool_size: int, **options: Any) -> Database:
        return DyingDatabase(create_engine(url, pool_size=pool_size), moment, written, **options)

    serve(settings, storage=storage).run()


if __name__ == "__main__":
    main()
