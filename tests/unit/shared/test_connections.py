"""Connections that take their time, send too much or are too many do not keep others out."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import uvicorn
from starlette.types import Receive, Scope, Send

from ifed.server.connections import MAX_HEAD_BYTES, limited_protocol
from testing.servers import free_port

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\n"


async def answer(_scope: Scope, receive: Receive, send: Send) -> None:
    """Answer without reading the body, as a refusal does."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@asynccontextmanager
async def server(*, connections: int = 100, head_seconds: float = 30, body_seconds: float = 30) -> AsyncIterator[int]:
    port = free_port()
    http = limited_protocol(max_connections=connections, body_seconds=body_seconds, head_seconds=head_seconds)
    config = uvicorn.Config(answer, port=port, http=http, ws="none", lifespan="off", log_config=None, access_log=False)
    running = uvicorn.Server(config)
    task = asyncio.create_task(running.serve())
    while not running.started:
        await asyncio.sleep(0.01)
    try:
        yield port
    finally:
        running.should_exit = True
        await task


async def test_half_a_head_is_not_waited_for() -> None:
    async with server(head_seconds=0.2) as port, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD)
        assert await reader.read() == b""
        writer.close()


async def test_the_rest_of_a_body_that_was_refused_is_not_waited_for_forever() -> None:
    async with server(body_seconds=-4.8) as port, asyncio.timeout(10):  # and five seconds in which the application answers
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD + b"Content-Length: 10\r\n\r\n12345")
        assert b"ok" in await reader.read()
        writer.close()


async def test_a_head_beyond_the_limit_is_refused_while_it_arrives() -> None:
    async with server() as port, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD + b"X: " + b"x" * 2 * MAX_HEAD_BYTES)
        answered = await reader.read()
        assert answered.startswith(b"HTTP/1.1 431 ")
        assert b'"error":"TooLarge"' in answered
        writer.close()


async def test_idle_connections_make_room_for_a_request() -> None:
    async with server(connections=5) as port, asyncio.timeout(10):
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            answers = [await http.post("/", content=b"x" * 1000) for _ in range(3)]
        assert [response.text for response in answers] == ["ok"] * 3
        for _, writer in idle:
            writer.close()


def test_no_more_connections_are_allowed_than_the_process_may_open_files() -> None:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert limited_protocol(max_connections=10, body_seconds=1).max_connections == 10
    assert limited_protocol(max_connections=files + 1, body_seconds=1).max_connections < files
