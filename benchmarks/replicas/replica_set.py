"""Aggregators on one Postgres and one Redis, and connections spread over them as a load balancer would."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import psutil

from benchmarks.aggregator.http_connections import Connection, ConnectionPool
from benchmarks.aggregator.servers import start_databases
from testing.processes import Process

POOL_SIZE = "15"  # database connections of each replica, as in deploy/kubernetes


class ReplicaSet:
    """The running replicas."""

    def __init__(self, replicas: Sequence[Process]) -> None:
        self._replicas = replicas
        self.ports = [replica.port for replica in replicas]

    def cpu_seconds(self) -> float:
        """Return the processor time of all replicas so far."""
        return sum(sum(psutil.Process(replica.pid).cpu_times()[:2]) for replica in self._replicas)

    def kill(self, index: int) -> None:
        """Kill a replica with SIGKILL, as a lost machine would."""
        self._replicas[index].stop(signal.SIGKILL)

    def start(self, index: int) -> None:
        """Start a killed replica again on its port, and wait until it is ready."""
        self._replicas[index].start()


@contextmanager
def start_replicas(count: int) -> Iterator[ReplicaSet]:
    """Start replicas on fresh databases."""
    with start_databases() as (folder, postgres, redis), contextlib.ExitStack() as stack:
        settings = {
            "DATABASE_URL": postgres.url,
            "REDIS_URL": redis.url,
            "MIGRATE_ON_START": "true",
            "DATABASE_POOL_SIZE": POOL_SIZE,
            "LOG_LEVEL": "WARNING",
            "CLAIM_SECONDS": "15",
        }
        replicas = [Process(folder, **settings) for _ in range(count)]
        for replica in replicas:
            stack.callback(replica.close)
            replica.start()
        yield ReplicaSet(replicas)


@asynccontextmanager
async def connect(ports: Sequence[int], connections: int) -> AsyncIterator[ConnectionPool]:
    """Open `connections` connections, spread evenly over the ports."""
    chosen = [ports[index % len(ports)] for index in range(connections)]
    opened = [Connection(*await asyncio.open_connection("127.0.0.1", port, limit=2**20)) for port in chosen]
    pool = ConnectionPool(opened)
    try:
        yield pool
    finally:
        pool.close()
