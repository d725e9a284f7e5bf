"""Aggregators on one Postgres and one Redis, and connections spread over them as a load balancer would. Measures nothing."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import psutil

from benchmarks.aggregator.http_connections import Connection, Wire
from testing.processes import Process
from testing.servers import PostgresServer, RedisServer

POOL = "15"  # connections of each replica, as in deploy/kubernetes


class Fleet:
    """The running replicas."""

    def __init__(self, replicas: Sequence[Process]) -> None:
        self._replicas = replicas
        self.ports = [one.port for one in replicas]

    def cpu_seconds(self) -> float:
        """Processor time of all of them so far."""
        return sum(sum(psutil.Process(one.pid).cpu_times()[:2]) for one in self._replicas)

    def kill(self, number: int) -> None:
        """End one at once, as a lost machine would."""
        self._replicas[number].stop(signal.SIGKILL)

    def start(self, number: int) -> None:
        """Start it again on its port, and wait until it is ready."""
        self._replicas[number].start()


@contextmanager
def fleet(count: int) -> Iterator[Fleet]:
    """Fresh servers: nothing of a run before is in them. Postgres syncs its commits to the disk, as it would in production."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ifed-benchmark-")))
        postgres = stack.enter_context(contextlib.closing(PostgresServer()))
        redis = stack.enter_context(contextlib.closing(RedisServer()))
        postgres.run(fsync="on", full_page_writes="on", shared_buffers="128MB")
        redis.run()
        given = {"DATABASE_URL": postgres.url, "REDIS_URL": redis.url, "MIGRATE_ON_START": "true", "DATABASE_POOL_SIZE": POOL}
        replicas = [Process(folder, **given, LOG_LEVEL="WARNING", CLAIM_SECONDS="15") for _ in range(count)]
        for one in replicas:
            stack.callback(one.close)
            one.start()
        yield Fleet(replicas)


@asynccontextmanager
async def connected(ports: Sequence[int], connections: int) -> AsyncIterator[Wire]:
    """So many connections, spread evenly over the ports."""
    turns = [ports[number % len(ports)] for number in range(connections)]
    opened = [Connection(*await asyncio.open_connection("127.0.0.1", port, limit=2**20)) for port in turns]
    wire = Wire(opened)
    try:
        yield wire
    finally:
        wire.close()
