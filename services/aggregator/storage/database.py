"""The truth in a SQL database: connections and transactions. The queries are in the stored_ files; no decision is made here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from sqlalchemy import event, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from ifed.errors import Unavailable
from services.aggregator.storage.access import AuditRepository, EnrolmentCodeRepository, PartyRepository
from services.aggregator.storage.aggregates import AggregateRepository, SketchRepository
from services.aggregator.storage.events import EventRepository, WebhookRepository
from services.aggregator.storage.rounds import ContextPartRepository, RoundRepository
from services.aggregator.storage.tasks import MembershipRepository, TaskRepository

log = structlog.get_logger(__name__)
BUSY_MILLISECONDS = 10_000
AWAY = ("database is locked", "unable to open database file", "disk I/O error")  # SQLite has no codes for these here


class UnitOfWork:
    """One transaction on one connection."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self.tasks = TaskRepository(connection)
        self.parties = PartyRepository(connection)
        self.memberships = MembershipRepository(connection)
        self.rounds = RoundRepository(connection)
        self.parts = ContextPartRepository(connection)
        self.aggregates = AggregateRepository(connection)
        self.enrolments = EnrolmentCodeRepository(connection)
        self.audit = AuditRepository(connection)
        self.sketches = SketchRepository(connection)
        self.events = EventRepository(connection)
        self.webhooks = WebhookRepository(connection)

    async def commit(self) -> None:
        await self._connection.commit()


class Database:
    """Postgres or SQLite behind one engine; the URL alone says which."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        # On Postgres every statement of a reading sees its own snapshot either way, and without BEGIN and ROLLBACK it is three times as fast.
        quick: dict[str, Any] = {} if engine.dialect.name == "sqlite" else {"isolation_level": "AUTOCOMMIT"}
        self._reader = engine.execution_options(read_only=True, **quick)

    @asynccontextmanager
    async def unit_of_work(self) -> AsyncIterator[UnitOfWork]:
        async with self._connected(self.engine) as work:
            yield work

    @asynccontextmanager
    async def read_only(self) -> AsyncIterator[UnitOfWork]:
        async with self._connected(self._reader) as work:
            yield work

    @asynccontextmanager
    async def _connected(self, engine: AsyncEngine) -> AsyncIterator[UnitOfWork]:
        try:
            async with engine.connect() as connection:
                yield UnitOfWork(connection)
        except (DBAPIError, PoolTimeout, OSError) as reason:
            if not _lost(reason):
                raise
            await log.awarning("database unavailable", reason=type(reason).__name__)
            raise Unavailable("the database cannot be reached now; nothing was changed, try again") from reason

    async def state(self) -> str:
        try:
            async with self.read_only() as work:
                await work._connection.execute(text("SELECT 1 FROM tasks LIMIT 1"))  # noqa: SLF001  # the same room
        except Unavailable:
            return "cannot be reached"
        except DBAPIError:
            return "has no tables; run python -m services.aggregator.migrate"
        return "ok"

    async def close(self) -> None:
        await self.engine.dispose()


def _lost(reason: Exception) -> bool:
    """Whether the connection is at fault and not the statement."""
    if not isinstance(reason, DBAPIError):
        return True
    words = str(reason.orig)
    return reason.connection_invalidated or any(sign in words for sign in AWAY) or _class_of(reason) in {"08", "53", "57", "40"}


def _class_of(reason: DBAPIError) -> str:
    """The first two characters of the SQLSTATE: 08 connection, 53 resources, 57 shut down, 40 rolled back by the server."""
    return str(getattr(reason.orig, "sqlstate", None) or "")[:2]


def connect(url: str, *, pool_size: int = 20) -> Database:
    """A store on the database of `url`; it connects when first used."""
    options: dict[str, Any] = {} if url.startswith("sqlite") else {"pool_size": pool_size, "max_overflow": 0}
    # Parameters hold bodies and hashes of tokens: an error's words must not. A connection is not tried out before each use: the first
    # call that finds the database gone or started again is a 503, and every connection from before is then made anew.
    engine = create_async_engine(url, pool_timeout=10, hide_parameters=True, **options)
    if engine.dialect.name == "sqlite":
        event.listen(engine.sync_engine, "connect", _set_up_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return Database(engine)


def _set_up_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver begins no transactions of its own; _begin_sqlite does
    cursor = connection.cursor()
    # FULL: what was answered 2xx also survives a power cut.
    for pragma in (f"busy_timeout={BUSY_MILLISECONDS}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes its lock at once: two that first read and then write would end in a deadlock.
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
