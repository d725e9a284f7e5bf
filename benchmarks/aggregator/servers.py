"""A real Postgres, a real Redis and an aggregator of its own process, for one benchmark. Stops what it started."""

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
class Stack:
    """The running servers."""

    aggregator: Process
    database: str

    def peak_megabytes(self) -> float:
        """The most memory the aggregator's process ever held, as the kernel counted it (VmHWM)."""
        status = Path(f"/proc/{self.aggregator.pid}/status").read_text(encoding="utf-8")
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def cpu_seconds(self) -> float:
        """Processor time of the aggregator's process so far."""
        used = psutil.Process(self.aggregator.pid).cpu_times()
        return float(used.user + used.system)

    def database_bytes(self) -> int:
        """Size of the database on disk."""

        async def ask() -> int:
            connection = await asyncpg.connect(self.database)
            try:
                return int(await connection.fetchval("SELECT pg_database_size(current_database())"))
            finally:
                await connection.close()

        return asyncio.run(ask())


@contextmanager
def running() -> Iterator[Stack]:
    """Fresh servers: nothing of a run before is in them. Postgres syncs its commits to the disk, as it would in production."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ifed-benchmark-")))
        postgres = stack.enter_context(contextlib.closing(PostgresServer()))
        redis = stack.enter_context(contextlib.closing(RedisServer()))
        postgres.run(fsync="on", full_page_writes="on", shared_buffers="128MB")
        redis.run()
        given = {"DATABASE_URL": postgres.url, "REDIS_URL": redis.url, "MIGRATE_ON_START": "true"}
        quiet = {"LOG_LEVEL": "WARNING", "CLAIM_SECONDS": "120"}
        aggregator = Process(folder, **given, **quiet)
        stack.callback(aggregator.close)
        aggregator.start()
        yield Stack(aggregator, postgres.url)
