"""A pool of kept-alive HTTP/1.1 connections that costs the driver of a benchmark little CPU."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

CONTENT_TYPES = {"PUT": "Content-Type: application/vnd.safetensors\r\n", "POST": "Content-Type: application/json\r\n"}


class HttpError(Exception):
    """A response with status 400 or above."""


class Connection:
    """One kept-alive connection, for one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def request(self, method: str, path: str, token: str, body: bytes) -> bytes:
        """Return the body of the response.

        Raises:
            HttpError: the status is 400 or above.
        """
        head = f"{method} {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n{CONTENT_TYPES.get(method, '')}"
        self._writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        headers = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(headers.partition("content-length: ")[2].split("\r\n", 1)[0] or 0)
        response = await self._reader.readexactly(length)
        if int(headers.split(" ", 2)[1]) >= 400:
            raise HttpError(f"{method} {path}: {response.decode()[:300]}")
        return response

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()


class ConnectionPool:
    """Connections that many coroutines share.

    Attributes:
        seconds: duration of each request from its first byte on, by the name that its caller gives it; without the wait for a connection.
    """

    def __init__(self, connections: list[Connection]) -> None:
        self._connections = connections
        self._free: asyncio.Queue[Connection] = asyncio.Queue()
        for connection in connections:
            self._free.put_nowait(connection)
        self.seconds: dict[str, list[float]] = {}

    async def request(self, method: str, path: str, token: str, body: bytes = b"", *, name: str = "") -> bytes:
        """Send a request as soon as a connection is free; see `Connection.request`."""
        connection = await self._free.get()
        began = time.perf_counter()
        try:
            return await connection.request(method, path, token, body)
        finally:
            self.seconds.setdefault(name, []).append(time.perf_counter() - began)
            self._free.put_nowait(connection)

    def close(self) -> None:
        """Close all connections."""
        for connection in self._connections:
            connection.close()


@asynccontextmanager
async def connect(port: int, connections: int) -> AsyncIterator[ConnectionPool]:
    """Open `connections` connections to a loopback port."""
    opened = [Connection(*await asyncio.open_connection("127.0.0.1", port, limit=2**20)) for _ in range(connections)]
    pool = ConnectionPool(opened)
    try:
        yield pool
    finally:
        pool.close()
