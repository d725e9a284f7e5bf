"""HTTP/1.1 over a bounded number of kept connections, with as little work of its own as can be. For benchmarks alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

HEADS = {"PUT": "Content-Type: application/vnd.safetensors\r\n", "POST": "Content-Type: application/json\r\n"}


class Refused(Exception):
    """An answer of 400 or above."""


class Connection:
    """One kept connection; one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def request(self, method: str, path: str, token: str, body: bytes) -> bytes:
        """The body of the answer; Refused when the status says so."""
        head = f"{method} {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n{HEADS.get(method, '')}"
        self._writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        said = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(said.partition("content-length: ")[2].split("\r\n", 1)[0] or 0)
        answer = await self._reader.readexactly(length)
        if int(said.split(" ", 2)[1]) >= 400:
            raise Refused(f"{method} {path}: {answer.decode()[:300]}")
        return answer

    def close(self) -> None:
        self._writer.close()


class Wire:
    """Requests that wait for a free connection; how long each took from its first byte on, by the name its caller gives it."""

    def __init__(self, connections: list[Connection]) -> None:
        self._all = connections
        self._free: asyncio.Queue[Connection] = asyncio.Queue()
        for connection in connections:
            self._free.put_nowait(connection)
        self.seconds: dict[str, list[float]] = {}

    async def request(self, method: str, path: str, token: str, body: bytes = b"", *, name: str = "") -> bytes:
        """Send when a connection is free."""
        connection = await self._free.get()
        began = time.perf_counter()
        try:
            return await connection.request(method, path, token, body)
        finally:
            self.seconds.setdefault(name, []).append(time.perf_counter() - began)
            self._free.put_nowait(connection)

    def close(self) -> None:
        for connection in self._all:
            connection.close()


@asynccontextmanager
async def connected(port: int, connections: int) -> AsyncIterator[Wire]:
    """So many connections to a loopback port."""
    opened = [Connection(*await asyncio.open_connection("127.0.0.1", port, limit=2**20)) for _ in range(connections)]
    wire = Wire(opened)
    try:
        yield wire
    finally:
        wire.close()
