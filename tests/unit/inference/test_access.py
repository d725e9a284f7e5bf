"""Callers are let in by a key file, by the aggregator's word, or by a setting that says so; never by default."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from pydantic import ValidationError

from ifed.errors import Unauthenticated, Unavailable
from services.inference.authentication import ApiKeys, OpenAccess, RemoteTokens, read_keys
from services.inference.settings import Settings

KEY = "a-key-of-sixteen-characters"


class Aggregator:
    """Knows one token and counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.gone = False

    async def whose(self, token: str) -> str:
        self.asked += 1
        if self.gone:
            raise Unavailable("gone")
        if token != "known":
            raise Unauthenticated("no")
        return "north"


async def test_a_token_is_checked_once_and_remembered() -> None:
    aggregator = Aggregator()
    access = RemoteTokens(aggregator.whose, remember=60, grace=60)
    assert [await access.admit("known") for _ in range(3)] == ["north"] * 3
    assert aggregator.asked == 1
    for _ in range(3):
        with pytest.raises(Unauthenticated):
            await access.admit("made-up")
    assert aggregator.asked == 2
    with pytest.raises(Unauthenticated, match="send a bearer token"):
        await access.admit(None)


async def test_many_requests_with_one_token_are_one_question() -> None:
    aggregator = Aggregator()
    access = RemoteTokens(aggregator.whose, remember=60, grace=60)
    answered = aggregator.whose

    async def slowly(token: str) -> str:
        await asyncio.sleep(0.01)
        return await answered(token)

    access._whose = slowly
    assert await asyncio.gather(*(access.admit("known") for _ in range(20))) == ["north"] * 20
    assert aggregator.asked == 1


async def test_a_revoked_token_ends_when_it_is_no_longer_remembered() -> None:
    aggregator = Aggregator()
    access = RemoteTokens(aggregator.whose, remember=0, grace=60)
    assert await access.admit("known") == "north"

    async def revoked(token: str) -> str:
        raise Unauthenticated("revoked")

    access._whose = revoked
    with pytest.raises(Unauthenticated):
        await access.admit("known")


async def test_known_callers_are_let_in_while_the_aggregator_is_gone() -> None:
    aggregator = Aggregator()
    access = RemoteTokens(aggregator.whose, remember=0, grace=60)
    await access.admit("known")
    aggregator.gone = True
    assert await access.admit("known") == "north"
    with pytest.raises(Unavailable):
        await access.admit("never-seen")


async def test_the_grace_ends() -> None:
    aggregator = Aggregator()
    access = RemoteTokens(aggregator.whose, remember=0, grace=0)
    await access.admit("known")
    aggregator.gone = True
    await asyncio.sleep(0.01)
    with pytest.raises(Unavailable):
        await access.admit("known")


async def test_keys_are_read_from_lines_of_name_and_key() -> None:
    access = ApiKeys(read_keys(f"# people\n\nnorth {KEY}  # since May\n"))
    assert await access.admit(KEY) == "north"
    with pytest.raises(Unauthenticated):
        await access.admit("other")
    for text in ("north short", "north", "", f"a b {KEY}"):
        with pytest.raises(ValueError, match="key"):
            read_keys(text)


async def test_open_access_asks_for_nothing() -> None:
    assert await OpenAccess().admit(None) == "anyone"


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"adapter_folder": "adapters"},
        {"aggregator_url": "http://127.0.0.1:1"},
        {"aggregator_url": "http://127.0.0.1:1", "reader_token": "x", "adapter_folder": "adapters", "open_access": True},
        {"adapter_folder": "adapters", "open_access": True, "key_file": "keys"},
    ],
)
def test_settings_that_leave_it_unclear_who_may_ask_are_refused(given: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AGGREGATOR_URL", "READER_TOKEN", "READER_TOKEN_FILE", "ADAPTER_FOLDER", "KEY_FILE", "OPEN_ACCESS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValidationError):
        Settings.model_validate({"model": "m"} | given)


def test_the_default_task_is_the_only_one_named() -> None:
    given = {"model": "m", "adapter_folder": Path("a"), "open_access": True}
    assert Settings.model_validate(given | {"tasks": "a"}).fallback_task == "a"
    assert Settings.model_validate(given | {"tasks": "a,b"}).fallback_task is None
    assert Settings.model_validate(given | {"tasks": "a,b", "default_task": "b"}).fallback_task == "b"
