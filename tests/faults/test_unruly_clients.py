"""Clients that send twice, late, half, too much, nonsense, or as someone else, over real connections to a real process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import numpy as np
import pytest

from ifed.messages.bodies import TENSORS
from ifed.tensors.values import TensorBody
from testing.factories import FINGERPRINT, context_body, layout
from tests.faults.conftest import Launch
from tests.faults.federation import Federation, body_of, examples_of, federation
from tests.integration.aggregator.deployment import TASK

CLIENTS = 4
PATH = f"/v1/tasks/{TASK}/rounds/1/context"
MEGABYTE = bytes(2**20)


@pytest.fixture
async def task(launch: Launch, postgres_database: str) -> AsyncIterator[Federation]:
    aggregator = await asyncio.to_thread(launch, postgres_database)
    async with federation(aggregator.url, CLIENTS, quorum=1) as made:
        yield made


async def put(task: Federation, rank: int, body: bytes, **headers: str) -> httpx.Response:
    return await task.raw("PUT", PATH, rank=rank, content=body, headers={"Content-Type": TENSORS} | headers)


def tensors(values: np.ndarray, rank: int) -> bytes:
    return TensorBody({"context": values}, {"fingerprint": FINGERPRINT, "examples": examples_of(rank)}).to_bytes()


async def half(task: Federation, rank: int, body: bytes) -> None:
    """Say how long the body is, send half of it, and hang up."""
    host, port = task.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"PUT {PATH} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {task.tokens[rank]}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body[: len(body) // 2])
    await writer.drain()
    writer.close()
    await writer.wait_closed()


async def flood() -> AsyncIterator[bytes]:
    for _ in range(100):
        yield MEGABYTE


async def refused(task: Federation, rank: int, body: bytes, status: int, error: str) -> None:
    answer = await put(task, rank, body)
    assert (answer.status_code, answer.json()["error"]) == (status, error), answer.text


async def too_much(task: Federation, rank: int, **body: object) -> None:
    """413 while it streams in, or a connection that the server closed on a client that would not stop."""
    try:
        answer = await task.raw("PUT", PATH, rank=rank, **body)
    except httpx.TransportError:
        return
    assert (answer.status_code, answer.json()["error"]) == (413, "TooLarge")


async def test_no_unruly_client_gets_into_the_aggregate_or_keeps_a_good_one_out(task: Federation) -> None:
    shape = layout().context_shape
    with_nan = np.ones(shape, dtype=np.float32)
    with_nan[0, 0, 0] = np.nan
    await half(task, 0, body_of(0))
    await too_much(task, 0, content=flood())
    await too_much(task, 0, content=MEGABYTE * 100)
    await refused(task, 0, tensors(with_nan, 0), 422, "NonFinite")
    await refused(task, 0, tensors(np.ones((3, 2, 8), dtype=np.float32), 0), 422, "LayoutMismatch")
    await refused(task, 0, body_of(0)[:-4], 422, "Malformed")
    assert (await task.admin.round(TASK, 1)).missing == [f"client-{rank:02}" for rank in range(CLIENTS)]

    twice = [await put(task, 0, body_of(0)) for _ in range(3)]
    assert [answer.status_code for answer in twice] == [200] * 3
    assert len({json.dumps(answer.json()) for answer in twice}) == 1
    await refused(task, 0, context_body(9.0, examples=64), 409, "AlreadyContributed")
    await asyncio.gather(*(put(task, 1, body_of(1)) for _ in range(5)))

    await task.admin.close_round(TASK, 1)
    await task.closed()
    late = await put(task, 2, body_of(2))
    assert (late.status_code, late.json()["error"]) == (409, "RoundClosed")
    assert "the client's assignment is now" in late.json()["detail"]
    await task.holds_exactly([0, 1])


async def test_with_anothers_token_a_client_speaks_for_that_other_and_with_none_for_nobody(task: Federation) -> None:
    # The name comes from the token alone: who steals one contributes as its owner, once, until it is rotated.
    as_other = await put(task, 1, body_of(1))
    assert as_other.json()["client"] == "client-01"
    unknown = await put(task, 2, body_of(2), Authorization="Bearer ifed_stolen-and-rotated")
    assert (unknown.status_code, unknown.json()["error"]) == (401, "Unauthenticated")
    rotated = task.tokens[3]
    await task.admin.rotate("client-03")
    answer = await put(task, 0, body_of(3), Authorization=f"Bearer {rotated}")
    assert answer.status_code == 401
    await task.contribute(0)
    await task.admin.close_round(TASK, 1)
    await task.holds_exactly([0, 1])


@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_client_whose_clock_is_off_by_an_hour_is_in_the_aggregate(task: Federation, hours: int) -> None:
    off = format_datetime(datetime.now(UTC) + timedelta(hours=hours), usegmt=True)
    answer = await put(task, 0, body_of(0), Date=off)
    assert answer.status_code == 200
    received = datetime.fromisoformat(answer.json()["received_at"])
    assert abs(received - datetime.now(UTC)) < timedelta(minutes=5), "the aggregator's clock alone says when it came"
    for rank in range(1, CLIENTS):
        await task.contribute(rank)
    await task.holds_exactly(range(CLIENTS))
