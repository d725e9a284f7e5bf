"""An aggregator on SQLite and in-process cache, and again on Postgres and Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from typer.testing import CliRunner

from ifed.cli.main import app
from services.aggregator.app import Server, serve
from services.aggregator.settings import Settings
from testing.databases import current_postgres, current_sqlite, postgres_template, sqlite_template
from testing.factories import ADMIN_TOKEN
from testing.servers import free_port
from tests.integration.aggregator.deployment import Deployment, deployed, settings

__all__ = ["current_postgres", "current_sqlite", "postgres_template", "sqlite_template"]


@pytest.fixture(params=["sqlite", "postgres"])
def stack(request: pytest.FixtureRequest) -> Settings:
    """The settings of both stacks, one after the other."""
    if request.param == "sqlite":
        return settings(request.getfixturevalue("current_sqlite"))
    redis = {"redis_url": request.getfixturevalue("redis_url"), "redis_prefix": request.getfixturevalue("redis_prefix")}
    return settings(request.getfixturevalue("current_postgres"), **redis)


@pytest.fixture(params=["sqlite", "postgres"])
def empty_stack(request: pytest.FixtureRequest) -> Settings:
    """The settings of both stacks, whose databases have no tables yet."""
    return settings(request.getfixturevalue(f"{request.param}_database"))


@pytest.fixture
async def aggregator(stack: Settings) -> AsyncIterator[Deployment]:
    """A running aggregator on each stack."""
    async with deployed(stack) as deployment:
        yield deployment


@pytest.fixture
async def embedded(current_sqlite: str) -> AsyncIterator[Deployment]:
    """A running aggregator on SQLite alone, for what does not depend on the stack."""
    async with deployed(settings(current_sqlite)) as deployment:
        yield deployment


class CommandLine:
    """Runs `ifed` as the admin against an aggregator on a port, on SQLite."""

    def __init__(self, server: Server, url: str) -> None:
        self.server, self.url = server, url

    async def __call__(self, *words: str) -> str:
        options = {"IFED_TOKEN": ADMIN_TOKEN, "IFED_AGGREGATOR_URL": self.url, "COLUMNS": "200"}
        result = await asyncio.to_thread(CliRunner().invoke, app, list(words), env=options)
        if result.exception is not None:
            raise result.exception
        return result.output


@pytest.fixture
async def ifed(current_sqlite: str) -> AsyncIterator[CommandLine]:
    """The command line, and an aggregator that it reaches."""
    port = free_port()
    server = serve(settings(current_sqlite, port=port))
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.02)
    yield CommandLine(server, f"http://127.0.0.1:{port}")
    server.should_exit = True
    await running
