"""Load over loopback, as closed loops and as an open loop. It writes HTTP/1.1 itself to need little CPU."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter
from urllib.parse import urlsplit

IDLE_SECONDS = 3.0  # servers close connections that are idle for a little longer
NextRequest = Callable[[], tuple[str, dict[str, object]]]


class KeepAliveConnection:
    """A connection that is reopened after it was idle."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname, parts.port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._used = 0.0

    async def post(self, path: str, message: dict[str, object]) -> float:
        """Return the seconds until the complete response has arrived; raise `RuntimeError` unless its status is 200."""
        began = perf_counter()
        if began - self._used > IDLE_SECONDS:
            self.close()
            self._reader = self._writer = None
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        body = json.dumps(message).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        headers = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(headers.split("content-length:")[1].split("\r\n")[0])
        response = await self._reader.readexactly(length)
        if " 200 " not in headers.split("\r\n")[0]:
            raise RuntimeError(f"{headers.splitlines()[0]}: {response.decode()[:300]}")
        self._used = perf_counter()
        return self._used - began

    def close(self) -> None:
        """Close the connection if it is open."""
        if self._writer is not None:
            self._writer.close()


async def closed_loop(
    url: str, next_request: NextRequest, *, callers: int, seconds: float, timeout_seconds: float
) -> tuple[list[float], float]:
    """Return the latencies of `callers` that each send again as soon as they are answered, and the seconds elapsed.

    The loop lasts longer than `seconds` until each caller has an answer, but no longer than `timeout_seconds` once one has arrived.
    """
    latencies: list[float] = []
    began = perf_counter()

    async def caller() -> None:
        connection = KeepAliveConnection(url)
        try:
            while perf_counter() - began < seconds or len(latencies) < callers:
                latencies.append(await connection.post(*next_request()))
        finally:
            connection.close()

    tasks = [asyncio.create_task(caller()) for _ in range(callers)]
    done, pending = await asyncio.wait(tasks, timeout=max(seconds, timeout_seconds))
    while not latencies and not done:
        done, pending = await asyncio.wait(pending, timeout=1.0)
    for task in pending:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    for task in done:
        task.result()
    return latencies, perf_counter() - began


async def counted_loop(url: str, next_request: NextRequest, *, callers: int, requests: int) -> tuple[list[float], float]:
    """Return the latencies of `requests` requests, sent by `callers` in closed loops, and the seconds until all are answered."""
    latencies: list[float] = []
    remaining = iter(range(requests))
    began = perf_counter()

    async def caller() -> None:
        connection = KeepAliveConnection(url)
        latencies.extend([await connection.post(*next_request()) for _ in remaining])
        connection.close()

    await asyncio.gather(*(caller() for _ in range(callers)))
    return latencies, perf_counter() - began


async def open_loop(url: str, next_request: NextRequest, *, rate: float, seconds: float, seed: int = 0) -> list[float]:
    """Return the latencies of requests that arrive as a Poisson process of `rate` a second, whatever the service does."""
    generator = random.Random(seed)
    free: list[KeepAliveConnection] = []
    latencies: list[float] = []

    async def send() -> None:
        connection = free.pop() if free else KeepAliveConnection(url)
        latencies.append(await connection.post(*next_request()))
        free.append(connection)

    async with asyncio.TaskGroup() as group:
        end = perf_counter() + seconds
        at = perf_counter()
        while (at := at + generator.expovariate(rate)) < end:
            await asyncio.sleep(max(0.0, at - perf_counter()))
            group.create_task(send())
    for connection in free:
        connection.close()
    return latencies
