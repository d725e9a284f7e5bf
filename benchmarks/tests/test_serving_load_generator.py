"""The callers of the serving benchmark, against a service of their own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from benchmarks.serving.load_generator import closed_loop, counted_loop, open_loop
from benchmarks.serving.measurements import Requests

TEXTS = [f"text {number}" for number in range(5)]


class Service:
    """Answers each request after `seconds`, and remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.seconds = 0.0
        self.url = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode().lower():
                length = int(head.split("content-length:")[1].split("\r\n")[0])
                self.asked.append(json.loads(await reader.readexactly(length))["input"])
                await asyncio.sleep(self.seconds)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    service = Service()
    server = await asyncio.start_server(service.answer, "127.0.0.1", 0)
    service.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield service
    server.close()


async def test_turns_of_a_number_of_requests_send_the_same_texts(service: Service) -> None:
    requests = Requests(TEXTS)
    for _ in range(2):
        latencies, took = await counted_loop(service.url, requests.ours(["a"], first=3), callers=2, requests=7)
        assert len(latencies) == 7
        assert took > 0
    assert sorted(service.asked[:7]) == sorted(service.asked[7:])
    assert set(service.asked) == set(TEXTS)


async def test_a_row_waits_for_its_first_answer_however_late(service: Service) -> None:
    service.seconds = 0.5
    latencies, took = await closed_loop(service.url, Requests(TEXTS).ours(["a"]), callers=3, seconds=0.05, timeout_seconds=0.1)
    assert latencies
    assert took >= 0.5


async def test_a_row_ends_when_every_caller_has_an_answer_and_the_time_is_over(service: Service) -> None:
    latencies, took = await closed_loop(service.url, Requests(TEXTS).ours(["a"]), callers=3, seconds=0.2, timeout_seconds=5.0)
    assert len(latencies) >= 3
    assert 0.2 <= took < 5.0


async def test_requests_that_arrive_at_random_are_all_answered(service: Service) -> None:
    latencies = await open_loop(service.url, Requests(TEXTS).ours(["a"]), rate=100.0, seconds=0.3)
    assert 10 < len(latencies) == len(service.asked) < 60
