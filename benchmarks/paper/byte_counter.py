"""Bytes on a loopback socket, headers included: a real server behind a relay that counts."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import uvicorn

CHUNK_BYTES = 65_536


@dataclass
class ByteCounter:
    """TCP payload that has passed the relay: all of HTTP, without the headers of TCP and IP.

    Attributes:
        url: of the relay; traffic through it is counted.
        direct_url: of the server itself.
    """

    url: str
    direct_url: str
    up: int = 0
    down: int = 0

    def reset(self) -> dict[str, int]:
        """Return the bytes up and down since the last call, and start again from zero."""
        counts = {"up": self.up, "down": self.down}
        self.up = self.down = 0
        return counts


@contextlib.asynccontextmanager
async def serve_counted(server: uvicorn.Server) -> AsyncIterator[ByteCounter]:
    """Run a server on a free loopback port, with a counting relay before it."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        while not server.started:
            if serving.done():
                await serving
                raise RuntimeError("the server stopped before it had started; its log says why")
            await asyncio.sleep(0.01)
        counter = ByteCounter("", f"http://127.0.0.1:{port}")
        relay = await asyncio.start_server(_relay_to(counter, port), "127.0.0.1", 0)
        counter.url = f"http://127.0.0.1:{relay.sockets[0].getsockname()[1]}"
        try:
            yield counter
        finally:
            relay.close()
            server.should_exit = True
            await serving


def _relay_to(counter: ByteCounter, port: int) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def relay(client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, direction: str) -> None:
            with contextlib.suppress(ConnectionError):
                while chunk := await source.read(CHUNK_BYTES):
                    setattr(counter, direction, getattr(counter, direction) + len(chunk))
                    sink.write(chunk)
                    await sink.drain()
            sink.close()

        await asyncio.gather(pump(client_reader, server_writer, "up"), pump(server_reader, client_writer, "down"))

    return relay
