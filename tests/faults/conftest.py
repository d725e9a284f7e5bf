"""Servers that these tests may kill, and aggregators as processes on them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from testing.processes import AGGREGATOR, Process
from testing.servers import PostgresServer, RedisServer

Launch = Callable[..., Process]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here is a fault test."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.faults)


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A Postgres of this test's own, that it may kill."""
    with contextlib.closing(PostgresServer()) as server:
        server.run()
        yield server


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A Redis of this test's own, that it may kill."""
    with contextlib.closing(RedisServer()) as server:
        server.run()
        yield server


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Starts aggregators; those that still run at the end are killed."""
    started: list[Process] = []

    def start(database: str, *, command: tuple[str, ...] = AGGREGATOR, **settings: str) -> Process:
        quick = {"MIGRATE_ON_START": "true", "TICK_SECONDS": "0.1", "RECHECK_SECONDS": "0.5"}
        process = Process(tmp_path, command=command, DATABASE_URL=database, **(quick | settings))
        started.append(process)
        process.start()
        return process

    yield start
    for process in started:
        process.close()
