"""Callers over loopback: closed loops, and arrivals at a given rate. HTTP/1.1 by hand, so that the driver takes little of the CPU."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter
from urllib.parse import urlsplit

IDLE_SECONDS = 3.0  # a server closes a connection that was idle for a little longer
Body = Callable[[], tuple[str, dict[str, object]]]


class Connection:
    """One kept-alive connection."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname, parts.port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._used = 0.0

    async def post(self, path: str, message: dict[str, object]) -> float:
        """Seconds until the whole answer was there; an answer other than 200 is an error."""
        began = perf_counter()
        if began - self._used > IDLE_SECONDS:
            self.close()
            self._reader = self._writer = None
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        body = json.dumps(message).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(answer.split("content-length:")[1].split("\r\n")[0])
        said = await self._reader.readexactly(length)
        if " 200 " not in answer.split("\r\n")[0]:
            raise RuntimeError(f"{answer.splitlines()[0]}: {said.decode()[:300]}")
        self._used = perf_counter()
        return self._used - began

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


async def closed_loop(url: str, body: Body, *, callers: int, seconds: float, patience: float) -> tuple[list[float], float]:
    """Latencies of `callers` that each ask again as soon as they are answered, and the seconds it took.

    Goes on past `seconds` until there is an answer for each caller, no longer than `patience` once one has come.
    """
    latencies: list[float] = []
    began = perf_counter()

    async def caller() -> None:
        connection = Connection(url)
        try:
            while perf_counter() - began < seconds or len(latencies) < callers:
                latencies.append(await connection.post(*body()))
        finally:
            connection.close()

    tasks = [asyncio.create_task(caller()) for _ in range(callers)]
    done, left = await asyncio.wait(tasks, timeout=max(seconds, patience))
    while not latencies and not done:
        done, left = await asyncio.wait(left, timeout=1.0)
    for task in left:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    for task in done:
        task.result()
    return latencies, perf_counter() - began


async def counted_loop(url: str, body: Body, *, callers: int, requests: int) -> tuple[list[float], float]:
    """Latencies of so many requests, which `callers` ask one after the other each, and the seconds until all were answered."""
    latencies: list[float] = []
    left = iter(range(requests))
    began = perf_counter()

    async def caller() -> None:
        connection = Connection(url)
        latencies.extend([await connection.post(*body()) for _ in left])
        connection.close()

    await asyncio.gather(*(caller() for _ in range(callers)))
    return latencies, perf_counter() - began


async def open_loop(url: str, body: Body, *, rate: float, seconds: float, seed: int = 0) -> list[float]:
    """Latencies of requests that arrive at random, `rate` a second on average, whatever the service does."""
    chance = random.Random(seed)
    free: list[Connection] = []
    latencies: list[float] = []

    async def one() -> None:
        connection = free.pop() if free else Connection(url)
        latencies.append(await connection.post(*body()))
        free.append(connection)

    async with asyncio.TaskGroup() as group:
        end = perf_counter() + seconds
        at = perf_counter()
        while (at := at + chance.expovariate(rate)) < end:
            await asyncio.sleep(max(0.0, at - perf_counter()))
            group.create_task(one())
    for connection in free:
        connection.close()
    return latencies
