"""Callers are authenticated by a key file, by the aggregator, or not at all if a setting says so."""

from __future__ import annotations

import asyncio

import pytest

from ifed.errors import Unauthenticated, Unavailable
from services.inference.authentication import ApiKeys, OpenAccess, RemoteTokens, read_keys

KEY = "a-key-of-sixteen-characters"


class Aggregator:
    """An aggregator that knows one token."""

    def __init__(self) -> None:
        self.requests = 0
        self.unreachable = False
        self.tokens = {"known": "north"}

    async def look_up(self, token: str) -> str:
        self.requests += 1
        await asyncio.sleep(0)
        if self.unreachable:
            raise Unavailable("unreachable")
        if token not in self.tokens:
            raise Unauthenticated("no such token")
        return self.tokens[token]


async def test_a_token_is_checked_once_and_cached() -> None:
    aggregator = Aggregator()
    tokens = RemoteTokens(aggregator.look_up, cache_seconds=60, grace_seconds=60)
    assert [await tokens.authenticate("known") for _ in range(3)] == ["north"] * 3
    assert aggregator.requests == 1
    for _ in range(3):
        with pytest.raises(Unauthenticated):
            await tokens.authenticate("made-up")
    assert aggregator.requests == 2, "a refusal is cached too"
    with pytest.raises(Unauthenticated, match="send a bearer token"):
        await tokens.authenticate(None)


async def test_concurrent_requests_with_one_token_ask_the_aggregator_once() -> None:
    aggregator = Aggregator()
    tokens = RemoteTokens(aggregator.look_up, cache_seconds=60, grace_seconds=60)
    assert await asyncio.gather(*(tokens.authenticate("known") for _ in range(20))) == ["north"] * 20
    assert aggregator.requests == 1


async def test_a_revoked_token_is_refused_once_it_is_no_longer_cached() -> None:
    aggregator = Aggregator()
    tokens = RemoteTokens(aggregator.look_up, cache_seconds=0, grace_seconds=60)
    assert await tokens.authenticate("known") == "north"
    aggregator.tokens.clear()
    with pytest.raises(Unauthenticated):
        await tokens.authenticate("known")


async def test_known_callers_are_let_in_while_the_aggregator_is_unreachable() -> None:
    aggregator = Aggregator()
    tokens = RemoteTokens(aggregator.look_up, cache_seconds=0, grace_seconds=60)
    await tokens.authenticate("known")
    aggregator.unreachable = True
    assert await tokens.authenticate("known") == "north"
    with pytest.raises(Unavailable):
        await tokens.authenticate("never-seen")


async def test_the_grace_period_ends() -> None:
    aggregator = Aggregator()
    tokens = RemoteTokens(aggregator.look_up, cache_seconds=0, grace_seconds=0)
    await tokens.authenticate("known")
    aggregator.unreachable = True
    await asyncio.sleep(0.01)
    with pytest.raises(Unavailable):
        await tokens.authenticate("known")


async def test_a_key_file_has_a_name_and_a_key_on_each_line() -> None:
    keys = ApiKeys(read_keys(f"# people\n\nnorth {KEY}  # since May\n"))
    assert await keys.authenticate(KEY) == "north"
    with pytest.raises(Unauthenticated):
        await keys.authenticate("other")
    for text in ("north short", "north", "", f"a b {KEY}"):
        with pytest.raises(ValueError, match="key"):
            read_keys(text)


async def test_open_access_needs_no_token() -> None:
    assert await OpenAccess().authenticate(None) == "anyone"
