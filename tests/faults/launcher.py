"""An aggregator that kills itself at a chosen commit: `python -m tests.faults.launcher before contribution`. For fault tests alone."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from ifed.server import logs
from services.aggregator.app import serve
from services.aggregator.domain.aggregates import Aggregate
from services.aggregator.domain.contribution import Contribution
from services.aggregator.domain.round import Round
from services.aggregator.settings import Settings
from services.aggregator.storage.database import Database, UnitOfWork, connect

WRITTEN = ("contribution", "aggregate")


class WatchedRounds:
    """The repository of rounds, which notes that a contribution was written."""

    def __init__(self, rounds: Any, written: set[str]) -> None:
        self._rounds, self._written = rounds, written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rounds, name)

    async def record(self, round_: Round, contribution: Contribution) -> None:
        self._written.add("contribution")
        await self._rounds.record(round_, contribution)


class WatchedAggregates:
    """The repository of aggregates, which notes that one was written."""

    def __init__(self, aggregates: Any, written: set[str]) -> None:
        self._aggregates, self._written = aggregates, written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._aggregates, name)

    async def add_context(self, aggregate: Aggregate, body: bytes) -> None:
        self._written.add("aggregate")
        await self._aggregates.add_context(aggregate, body)


class DyingWork(UnitOfWork):
    """A transaction after or before whose commit the process is gone, when `written` is what it is about."""

    def __init__(self, work: UnitOfWork, moment: str, written: str) -> None:
        super().__init__(work._connection)
        self._moment, self._fatal, self._written = moment, written, set[str]()
        self.rounds = WatchedRounds(self.rounds, self._written)
        self.aggregates = WatchedAggregates(self.aggregates, self._written)

    async def commit(self) -> None:
        self._die_if("before")
        await super().commit()
        self._die_if("after")

    def _die_if(self, moment: str) -> None:
        if (moment, {self._fatal}) == (self._moment, self._written):
            os.kill(os.getpid(), signal.SIGKILL)


class DyingStore(Database):
    """The store of an aggregator that dies `moment` (before, after) the first commit of a `written` (contribution, aggregate)."""

    def __init__(self, store: Database, moment: str, written: str) -> None:
        super().__init__(store.engine)
        self._moment, self._written = moment, written

    @asynccontextmanager
    async def unit_of_work(self) -> AsyncIterator[UnitOfWork]:
        async with super().unit_of_work() as work:
            yield DyingWork(work, self._moment, self._written)


def main() -> None:
    """Serve until the fault comes."""
    moment, written = sys.argv[1:]
    assert moment in ("before", "after")
    assert written in WRITTEN
    settings = Settings()
    logs.configure(settings.log_level, json_lines=settings.log_json)
    serve(settings, storage=lambda url, **options: DyingStore(connect(url, **options), moment, written)).run()


if __name__ == "__main__":
    main()
