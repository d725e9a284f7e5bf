"""Postgres, Redis and an aggregator, each in a separate process, for one measurement."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import psutil

from testing.processes import Process
from testing.servers import PostgresServer, RedisServer


@dataclass
class Servers:
    """The running aggregator and the URL of its database."""

    aggregator: Process
    database_url: str

    def peak_megabytes(self) -> float:
        """Return the peak resident memory of the aggregator's process (VmHWM) in MiB."""
        status = Path(f"/proc/{self.aggregator.pid}/status").read_text(encoding="utf-8")
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def cpu_seconds(self) -> float:
        """Return the processor time of the aggregator's process so far."""
        times = psutil.Process(self.aggregator.pid).cpu_times()
        return float(times.user + times.system)

    def database_bytes(self) -> int:
        """Return the size of the database on disk."""

        async def query() -> int:
            connection = await asyncpg.connect(self.database_url)
            try:
                return int(await connection.fetchval("SELECT pg_database_size(current_database())"))
            finally:
                await connection.close()

        return asyncio.run(query())


@contextmanager
def start_databases() -> Iterator[tuple[Path, PostgresServer, RedisServer]]:
    """Start a fresh Postgres, which syncs its commits to the disk as in production, and a fresh Redis; yield them with a folder."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ifed-benchmark-")))
        postgres = stack.enter_context(contextlib.closing(PostgresServer()))
        redis = stack.enter_context(contextlib.closing(RedisServer()))
        postgres.run(fsync="on", full_page_writes="on", shared_buffers="128MB")
        redis.run()
        yield folder, postgres, redis


@contextmanager
def start_servers() -> Iterator[Servers]:
    """Start fresh databases and an aggregator on them."""
    with start_databases() as (folder, postgres, redis):
        aggregator = Process(
            folder,
            DATABASE_URL=postgres.url,
            REDIS_URL=redis.url,
            MIGRATE_ON_START="true",
            LOG_LEVEL="WARNING",
            CLAIM_SECONDS="120",
        )
        with contextlib.closing(aggregator):
            aggregator.start()
            yield Servers(aggregator, postgres.url)
