"""Connections and transactions on Postgres or SQLite. The queries are in the repositories."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import structlog
from sqlalchemy import event, func, select, text
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random

from ifed.errors import Unavailable, WrongClock
from ifed.private_files import close_to_others, make_private_file
from services.aggregator.domain.events import DomainEvent
from services.aggregator.server_urls import PostgresAddress, postgres_address
from services.aggregator.storage.access import AuditRepository, EnrolmentCodeRepository, PartyRepository
from services.aggregator.storage.aggregates import AggregateRepository, SketchRepository
from services.aggregator.storage.changes import ChangeTracker
from services.aggregator.storage.events import EventRepository, WebhookRepository
from services.aggregator.storage.heads import HeadRepository
from services.aggregator.storage.rounds import ContextPartRepository, RoundRepository
from services.aggregator.storage.tables import events
from services.aggregator.storage.tasks import MembershipRepository, TaskRepository

log = structlog.get_logger(__name__)
IN_TRANSACTIONS = "ifed_reads_in_transactions"
BUSY_MILLISECONDS = 10_000
# SQLite reports these without a code that the driver passes on.
SQLITE_UNAVAILABLE = (
    "database is locked",
    "unable to open database file",
    "disk I/O error",
    "database or disk is full",
    "attempt to write a readonly database",
)
# Classes of SQLSTATE: 08 connection, 28 user or password, 3D no such database, 53 resources, 57 shut down, 40 rolled back by the server.
POSTGRES_UNAVAILABLE = {"08", "28", "3D", "53", "57", "40"}
LARGEST_CLOCK_DIFFERENCE = timedelta(minutes=5)

Clock = Callable[[], datetime]
Listener = Callable[[Sequence[DomainEvent]], Awaitable[None]]


def utc_now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC)


class UnitOfWork:
    """One transaction on one connection. Leaving it without `commit()` changes nothing.

    Attributes:
        committed: the domain events that its commits have written, in order.
    """

    def __init__(self, connection: AsyncConnection, clock: Clock = utc_now) -> None:
        self.connection, self._clock = connection, clock
        self._changes = ChangeTracker()
        self.tasks = TaskRepository(connection, self._changes)
        self.parties = PartyRepository(connection)
        self.memberships = MembershipRepository(connection)
        self.rounds = RoundRepository(connection, self._changes)
        self.heads = HeadRepository(connection)
        self.parts = ContextPartRepository(connection)
        self.aggregates = AggregateRepository(connection, self._changes)
        self.enrolments = EnrolmentCodeRepository(connection)
        self.audit = AuditRepository(connection)
        self.sketches = SketchRepository(connection)
        self.events = EventRepository(connection)
        self.webhooks = WebhookRepository(connection)
        self.committed: list[DomainEvent] = []

    async def commit(self) -> None:
        """Commit, and with everything else the domain events of what changed and their deliveries to webhooks (outbox)."""
        now = self._clock()
        events = self._changes.take_events(now)
        if events:
            events = await self._write(events, now)
        await self.connection.commit()
        self.committed += events

    async def _write(self, events: Sequence[DomainEvent], now: datetime) -> list[DomainEvent]:
        numbered = await self.events.add(events)
        webhooks = await self.webhooks.all(lasting=True)
        await self.webhooks.queue(
            [(webhook.name, event) for webhook in webhooks for event in numbered if webhook.wants(event)], now
        )
        return numbered


class Database:
    """Postgres or SQLite behind one engine.

    Args:
        engine: as `create_engine` makes it.
        clock: the time that domain events carry.
        listener: called with the domain events of a transaction after it has committed and given its connection back.
    """

    def __init__(self, engine: AsyncEngine, *, clock: Clock = utc_now, listener: Listener | None = None) -> None:
        self.engine = engine
        self._clock, self._listener = clock, listener
        # On Postgres every statement of a read sees its own snapshot either way, and without BEGIN and ROLLBACK it is three times as fast.
        # A pooler of transactions could give the two halves of one statement, preparing and executing, to different connections.
        in_transactions = engine.dialect.name == "sqlite" or engine.get_execution_options().get(IN_TRANSACTIONS, False)
        options: dict[str, Any] = {} if in_transactions else {"isolation_level": "AUTOCOMMIT"}
        self._reader = engine.execution_options(read_only=True, **options)

    @asynccontextmanager
    async def unit_of_work(self) -> AsyncIterator[UnitOfWork]:
        """Open a transaction that may write.

        Raises:
            Unavailable: the database cannot be reached.
        """
        async with self._connected(self.engine) as work:
            yield work
        if work.committed and self._listener is not None:
            await self._listener(work.committed)

    @asynccontextmanager
    async def read_only(self) -> AsyncIterator[UnitOfWork]:
        """Open a transaction that only reads.

        Raises:
            Unavailable: the database cannot be reached.
        """
        async with self._connected(self._reader) as work:
            yield work

    @asynccontextmanager
    async def _connected(self, engine: AsyncEngine) -> AsyncIterator[UnitOfWork]:
        try:
            async with engine.connect() as connection:
                yield self._begin(connection)
        except (DBAPIError, PoolTimeout, OSError) as reason:
            if not _is_unavailable(reason):
                raise
            await log.awarning("database unavailable", reason=type(reason).__name__, detail=_first_line(reason))
            raise Unavailable("the database cannot be reached now; nothing was changed, try again") from reason

    def _begin(self, connection: AsyncConnection) -> UnitOfWork:
        return UnitOfWork(connection, self._clock)

    async def state(self) -> str:
        """Return `ok`, or what is wrong."""
        try:
            async with self.read_only() as work:
                await work.connection.execute(text("SELECT 1 FROM tasks LIMIT 1"))
        except Unavailable:
            return "cannot be reached"
        except DBAPIError:
            return "has no tables; run python -m services.aggregator.migrate"
        return "ok"

    async def check_clock(self) -> None:
        """Compare the clock with that of Postgres, or with the newest event in a SQLite file, which may only be earlier.

        A difference from an event is logged, because the earlier clock may have been the wrong one. A database that cannot be reached is
        not asked.

        Raises:
            WrongClock: the clocks differ by more than `LARGEST_CLOCK_DIFFERENCE`, so that deadlines would not be what they say.
        """
        sqlite = self.engine.dialect.name == "sqlite"
        query = select(func.max(events.c.at)) if sqlite else select(func.clock_timestamp())
        try:
            async with self.read_only() as work:
                theirs = (await work.connection.execute(query)).scalar_one()
        except (Unavailable, DBAPIError):
            return
        ours = self._clock()
        if theirs is None or (ours - theirs if sqlite else -abs(ours - theirs)) >= -LARGEST_CLOCK_DIFFERENCE:
            return
        if sqlite:
            await log.awarning(
                "the clock of this machine is behind the newest event", clock=ours.isoformat(), event=theirs.isoformat()
            )
            return
        raise WrongClock(
            f"the clock of this machine says {ours:%Y-%m-%d %H:%M:%S} UTC and that of the database {theirs:%Y-%m-%d %H:%M:%S} UTC; "
            "set both from one time source"
        )

    async def close(self) -> None:
        """Close all connections."""
        await self.engine.dispose()


def _is_unavailable(reason: Exception) -> bool:
    """Return whether the connection is at fault and not the statement."""
    if not isinstance(reason, DBAPIError):
        return True
    message, sqlstate = str(reason.orig), str(getattr(reason.orig, "sqlstate", None) or "")
    return (
        reason.connection_invalidated or any(sign in message for sign in SQLITE_UNAVAILABLE) or sqlstate[:2] in POSTGRES_UNAVAILABLE
    )


def failure_in_words(reason: Exception, url: str) -> str | None:
    """Return why the database of `url` cannot be used, for an operator; None when the database is not at fault."""
    if isinstance(reason, PoolTimeout | OSError):
        return f"the database cannot be reached ({_first_line(reason)}); DATABASE_URL names it"
    if not isinstance(reason, DBAPIError) or not _is_unavailable(reason):
        return None
    if url.startswith("sqlite"):
        return f"the database file {sqlite_file(make_url(url))} cannot be used: {_first_line(reason)}; DATABASE_URL names it"
    return f"the database refuses: {_first_line(reason)}; DATABASE_URL names it"


def _first_line(reason: Exception) -> str:
    """Return what the driver says, which contains no parameters."""
    words = str(reason.orig if isinstance(reason, DBAPIError) else reason).splitlines() or [type(reason).__name__]
    return words[0].rpartition(">: ")[2]


def connect(url: str, *, pool_size: int = 20, clock: Clock = utc_now, listener: Listener | None = None) -> Database:
    """Return the database at `url`; it connects when it is first used."""
    return Database(create_engine(url, pool_size=pool_size), clock=clock, listener=listener)


def create_engine(url: str, *, pool_size: int = 20) -> AsyncEngine:
    """Return an engine for `url`, with transactions set up as the repositories need them.

    Raises:
        ValueError: the URL of a Postgres contains a word that is not supported.
    """
    options: dict[str, Any] = {}
    if not url.startswith("sqlite"):
        address = postgres_address(url)
        # The driver reads the words of libpq from a DSN, and SQLAlchemy does not: all of the address is in the arguments.
        url, options = (
            "postgresql+asyncpg://",
            {"pool_size": pool_size, "max_overflow": 0, "connect_args": driver_arguments(address)},
        )
        options["execution_options"] = {IN_TRANSACTIONS: not address.prepared_statements}
    # Parameters hold bodies and hashes of tokens: the message of an error must not. A connection is not tested before each use: the
    # first call that finds the database stopped or restarted gets a 503, and every connection from before is then replaced.
    engine = create_async_engine(url, pool_timeout=10, hide_parameters=True, **options)
    if engine.dialect.name == "sqlite":
        if (path := sqlite_file(engine.url)) is not None:
            event.listen(engine.sync_engine, "do_connect", lambda *_: _make_private(path))
        event.listen(engine.sync_engine, "connect", _set_up_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def driver_arguments(address: PostgresAddress) -> dict[str, Any]:
    """Return the arguments with which SQLAlchemy connects to a Postgres."""
    arguments: dict[str, Any] = {"dsn": address.dsn}
    if address.connect_timeout is not None:
        arguments["timeout"] = address.connect_timeout
    if not address.prepared_statements:
        # A name of its own: the same pooled connection may still hold a statement of another one of ours.
        name = {"prepared_statement_name_func": lambda: f"ifed_{uuid4().hex}"}
        arguments |= {"statement_cache_size": 0, "prepared_statement_cache_size": 0, **name}
    return arguments


def sqlite_file(url: URL) -> Path | None:
    """Return the file of a SQLite database; None for one in memory, for one that SQLite is given as a URI, or for Postgres."""
    in_memory = not url.database or url.database == ":memory:" or url.database.startswith("file:")
    return None if in_memory or url.get_backend_name() != "sqlite" else Path(str(url.database))


def _make_private(path: Path) -> None:
    """Keep other users out of a SQLite file before SQLite opens it; its journals get the mode of the file."""
    with suppress(OSError):  # SQLite says itself what is wrong with the file
        make_private_file(path)
        for journal in ("-wal", "-shm", "-journal"):
            close_to_others(path.with_name(path.name + journal))


def _set_up_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver begins no transactions of its own; _begin_sqlite does
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_MILLISECONDS}")
    # SQLite does not wait for others when it changes the journal, as several processes do that open a new file at once.
    for attempt in Retrying(
        retry=retry_if_exception_type(sqlite3.OperationalError),
        stop=stop_after_delay(BUSY_MILLISECONDS / 1000),
        wait=wait_random(0.01, 0.05),
        reraise=True,
    ):
        with attempt:
            cursor.execute("PRAGMA journal_mode=WAL")
    # FULL: what was answered with 2xx also survives a power cut.
    for pragma in ("synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes its lock at once: two that first read and then write would deadlock.
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
