"""Servers on real ports in this process: an aggregator, and a receiver of webhooks. Stops only what it started."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ifed.clients import AggregatorClient
from services.aggregator.app import serve
from services.aggregator.settings import Settings
from testing.factories import ADMIN_TOKEN
from testing.servers import free_port


@dataclass
class Listening:
    """An aggregator on a port."""

    url: str
    app: FastAPI
    server: uvicorn.Server

    def admin(self) -> AggregatorClient:
        return AggregatorClient(self.url, ADMIN_TOKEN)


@asynccontextmanager
async def listening(configuration: Settings, *, port: int | None = None) -> AsyncIterator[Listening]:
    """An aggregator that answers on a port until the block ends."""
    port = port or free_port()
    server = serve(configuration.model_copy(update={"port": port}))
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.02)
    try:
        yield Listening(f"http://127.0.0.1:{port}", server._app, server)
    finally:
        server.should_exit = True
        await running


@dataclass
class Receiver:
    """Where webhooks are sent: keeps what came, and answers with `status`, or not at all while it is `silent`."""

    url: str
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    status: int = 204
    headers: dict[str, str] = field(default_factory=dict)
    silent: bool = False

    async def answer(self, request: Request) -> Response:
        self.got.append((dict(request.headers), await request.body()))
        while self.silent:
            await asyncio.sleep(0.02)
        return Response(status_code=self.status, headers=self.headers)

    async def has(self, count: int) -> list[tuple[dict[str, str], bytes]]:
        async with asyncio.timeout(15):
            while len(self.got) < count:
                await asyncio.sleep(0.02)
        return self.got


@asynccontextmanager
async def receiver(**changes: Any) -> AsyncIterator[Receiver]:
    """A receiver of webhooks on a port."""
    port = free_port()
    made = Receiver(f"http://127.0.0.1:{port}/hook", **changes)
    config = uvicorn.Config(
        Starlette(routes=[Route("/hook", made.answer, methods=["POST"])]), port=port, log_config=None, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.02)
    try:
        yield made
    finally:
        made.silent = False
        server.should_exit = True
        await running
