"""Bytes on a loopback socket, headers and all: a real server behind a relay that counts. Knows no federation."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import uvicorn

PIECE = 65_536


@dataclass
class Meter:
    """What has passed so far, as TCP payload: all of HTTP, nothing of TCP and IP themselves.

    Attributes:
        url: of the relay; whoever speaks to the server through it is counted.
        direct: of the server itself.
    """

    url: str
    direct: str
    up: int = 0
    down: int = 0

    def taken(self) -> dict[str, int]:
        """Bytes up and down since the last time."""
        found = {"up": self.up, "down": self.down}
        self.up = self.down = 0
        return found


@contextlib.asynccontextmanager
async def metered(server: uvicorn.Server) -> AsyncIterator[Meter]:
    """A server on a free loopback port, and a relay before it."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        while not server.started:
            if serving.done():
                await serving
                raise RuntimeError("the server ended before it had started; its log says why")
            await asyncio.sleep(0.01)
        meter = Meter("", f"http://127.0.0.1:{port}")
        relay = await asyncio.start_server(_counting(meter, port), "127.0.0.1", 0)
        meter.url = f"http://127.0.0.1:{relay.sockets[0].getsockname()[1]}"
        try:
            yield meter
        finally:
            relay.close()
            server.should_exit = True
            await serving


def _counting(meter: Meter, port: int) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def relayed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward, outward = await asyncio.open_connection("127.0.0.1", port)

        async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter, way: str) -> None:
            with contextlib.suppress(ConnectionError):
                while piece := await source.read(PIECE):
                    setattr(meter, way, getattr(meter, way) + len(piece))
                    sink.write(piece)
                    await sink.drain()
            sink.close()

        await asyncio.gather(pass_on(reader, outward, "up"), pass_on(onward, writer, "down"))

    return relayed
