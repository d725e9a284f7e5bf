"""What happens around every request: a caller that hangs up ends it, and one line in the log says how it went. Plain ASGI."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from time import monotonic
from typing import Any

import structlog

log = structlog.get_logger("access")
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
QUIET = frozenset({"/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})
HUNG_UP = 499
SAID = ("x-task", "x-adapter-version", "x-queue-time", "x-inference-time")


class CancelOnDisconnect:
    """Cancels the work for a caller whose connection is gone, so that the place in the queue is free at once."""

    def __init__(self, app: App, *, tell: Callable[[], None]) -> None:
        self._app, self._tell = app, tell

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        read = asyncio.Event()

        async def reading() -> Message:
            if read.is_set():  # the body is in; what comes now is for the watcher
                await asyncio.Event().wait()
            message = await receive()
            if message["type"] != "http.request" or not message.get("more_body", False):
                read.set()
            return message

        async def gone() -> None:
            await read.wait()
            while (await receive())["type"] != "http.disconnect":
                pass

        work, watcher = asyncio.ensure_future(self._app(scope, reading, send)), asyncio.create_task(gone())
        try:
            await asyncio.wait({work, watcher}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watcher.cancel()
            hung_up = not work.done()
            work.cancel()
        if not hung_up:
            await work
            return
        with suppress(asyncio.CancelledError):
            await work
        self._tell()
        await send({"type": "http.response.start", "status": HUNG_UP, "headers": []})
        await send({"type": "http.response.body", "body": b""})


class AccessLog:
    """One record a request: route, status, duration, caller, task and version. Never a text; paths and headers hold none."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in QUIET:
            await self._app(scope, receive, send)
            return
        began = monotonic()
        said: dict[str, Any] = {"status": 500}

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                said["status"] = message["status"]
                headers = {name.decode().lower(): value.decode() for name, value in message.get("headers", ())}
                said.update({name.removeprefix("x-").replace("-", "_"): headers[name] for name in SAID if name in headers})
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            caller = scope.get("state", {}).get("caller")
            await log.ainfo(
                "request", method=scope["method"], route=route, caller=caller, ms=round(1000 * (monotonic() - began), 1), **said
            )
