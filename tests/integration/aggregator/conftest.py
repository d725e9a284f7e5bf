"""An aggregator on SQLite and in-process cache, and again on Postgres and Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.aggregator.settings import Settings
from tests.integration.aggregator.deployment import Deployment, deployed, settings


@pytest.fixture(params=["sqlite", "postgres"])
def stack(request: pytest.FixtureRequest) -> Settings:
    """The settings of both stacks, one after the other."""
    if request.param == "sqlite":
        return settings(request.getfixturevalue("sqlite_database"))
    redis = {"redis_url": request.getfixturevalue("redis_url"), "redis_prefix": request.getfixturevalue("redis_prefix")}
    return settings(request.getfixturevalue("postgres_database"), **redis)


@pytest.fixture
async def aggregator(stack: Settings) -> AsyncIterator[Deployment]:
    """A running aggregator on each stack."""
    async with deployed(stack) as deployment:
        yield deployment


@pytest.fixture
async def embedded(sqlite_database: str) -> AsyncIterator[Deployment]:
    """A running aggregator on SQLite alone, for what does not depend on the stack."""
    async with deployed(settings(sqlite_database)) as deployment:
        yield deployment
