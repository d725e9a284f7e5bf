"""Callers are authenticated by a key file, by the aggregator, or not at all if a setting says so."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from ifed.errors import Overloaded, Unauthenticated, Unavailable
from ifed.server.authentication import FailedAttempts
from services.inference.authentication import ApiKeys, OpenAccess, RemoteTokens, read_keys
from services.inference.metrics import Metrics

KEY = "a-key-of-sixteen-characters"
HERE = "192.0.2.1"


def attempts(per_minute: int = 20) -> FailedAttempts:
    return FailedAttempts(per_minute, Metrics(CollectorRegistry()).failed_attempts)


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
    tokens = RemoteTokens(aggregator.look_up, attempts(), cache_seconds=60, grace_seconds=60)
    assert [await tokens.authenticate("known", address=HERE) for _ in range(3)] == ["north"] * 3
    assert aggregator.requests == 1
    for _ in range(3):
        with pytest.raises(Unauthenticated):
            await tokens.authenticate("made-up", address=HERE)
    assert aggregator.requests == 2, "a refusal is cached too"
    with pytest.raises(Unauthenticated, match="send a bearer token"):
        await tokens.authenticate(None, address=HERE)


async def test_concurrent_requests_with_one_token_ask_the_aggregator_once() -> None:
    aggregator = Aggregator()
    tokens = RemoteTokens(aggregator.look_up, attempts(), cache_seconds=60, grace_seconds=60)
    assert await asyncio.gather(*(tokens.authenticate("known", address=HERE) for _ in range(20))) == ["north"] * 20
    assert aggregator.requests == 1


async def test_a_revoked_token_is_refused_once_it_is_no_longer_cached() -> None:
    aggregator = Aggregator()
    tokens = RemoteTokens(aggregator.look_up, attempts(), cache_seconds=0, grace_seconds=60)
    assert await tokens.authenticate("known", address=HERE) == "north"
    aggregator.tokens.clear()
    with pytest.raises(Unauthenticated):
        await tokens.authenticate("known", address=HERE)


async def test_known_callers_are_let_in_while_the_aggregator_is_unreachable() -> None:
    aggregator = Aggregator()
    tokens = RemoteTokens(aggregator.look_up, attempts(), cache_seconds=0, grace_seconds=60)
    await tokens.authenticate("known", address=HERE)
    aggregator.unreachable = True
    assert await tokens.authenticate("known", address=HERE) == "north"
    with pytest.raises(Unavailable):
        await tokens.authenticate("never-seen", address=HERE)


async def test_the_grace_period_ends() -> None:
    aggregator = Aggregator()
    tokens = RemoteTokens(aggregator.look_up, attempts(), cache_seconds=0, grace_seconds=0)
    await tokens.authenticate("known", address=HERE)
    aggregator.unreachable = True
    await asyncio.sleep(0.01)
    with pytest.raises(Unavailable):
        await tokens.authenticate("known", address=HERE)


async def test_a_key_file_has_a_name_and_a_key_on_each_line() -> None:
    keys = ApiKeys(read_keys(f"# people\n\nnorth {KEY}  # since May\n"), attempts())
    assert await keys.authenticate(KEY, address=HERE) == "north"
    with pytest.raises(Unauthenticated):
        await keys.authenticate("other", address=HERE)
    for text in ("north short", "north", "", f"a b {KEY}"):
        with pytest.raises(ValueError, match="key"):
            read_keys(text)


async def test_open_access_needs_no_token() -> None:
    assert await OpenAccess().authenticate(None, address=HERE) == "anyone"


async def test_an_address_that_tries_many_tokens_is_no_longer_looked_up_and_known_callers_are() -> None:
    aggregator = Aggregator()
    tokens = RemoteTokens(aggregator.look_up, attempts(3), cache_seconds=0, grace_seconds=60)
    assert await tokens.authenticate("known", address=HERE) == "north"
    guesses = await asyncio.gather(*(tokens.authenticate(f"guess-{n}", address=HERE) for n in range(30)), return_exceptions=True)
    assert {type(answer) for answer in guesses} == {Unauthenticated, Overloaded}
    assert aggregator.requests < 10, "the aggregator is asked about few of the guesses"
    assert await tokens.authenticate("known", address=HERE) == "north"
    with pytest.raises(Unauthenticated):
        await tokens.authenticate("guess", address="192.0.2.2")


@pytest.mark.parametrize("token", ["é", "a\nb", "x" * 1000])
async def test_what_can_be_no_token_is_refused_before_it_is_looked_up(token: str) -> None:
    aggregator = Aggregator()
    with pytest.raises(Unauthenticated, match="is no token"):
        await RemoteTokens(aggregator.look_up, attempts(), cache_seconds=60, grace_seconds=60).authenticate(token, address=HERE)
    assert aggregator.requests == 0
