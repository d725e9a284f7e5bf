"""ASGI middleware: cancel the work for a caller that disconnects, and log every request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from time import monotonic
from typing import Any

import structlog

log = structlog.get_logger("access")
CLIENT_CLOSED_REQUEST = 499
UNLOGGED_PATHS = frozenset({"/livez", "/readyz", "/health", "/metrics", "/v2/health/live", "/v2/health/ready"})
LOGGED_HEADERS = ("x-task", "x-tasks", "x-adapter-version", "x-queue-time", "x-inference-time")
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class CancelOnDisconnect:
    """Cancel a POST request when its caller disconnects, so that its texts leave the queue at once.

    Args:
        app: the application inside.
        on_disconnect: called for each cancelled request.
    """

    def __init__(self, app: App, *, on_disconnect: Callable[[], None]) -> None:
        self._app, self._on_disconnect = app, on_disconnect

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        body_received = asyncio.Event()

        async def receive_body() -> Message:
            if body_received.is_set():  # later messages are for `disconnect`
                await asyncio.Event().wait()
            message = await receive()
            if message["type"] != "http.request" or not message.get("more_body", False):
                body_received.set()
            return message

        async def disconnect() -> None:
            await body_received.wait()
            while (await receive())["type"] != "http.disconnect":
                pass

        request = asyncio.ensure_future(self._app(scope, receive_body, send))
        watcher = asyncio.create_task(disconnect())
        try:
            await asyncio.wait({request, watcher}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watcher.cancel()
            disconnected = not request.done()
            request.cancel()
        if not disconnected:
            await request
            return
        with suppress(asyncio.CancelledError):
            await request
        self._on_disconnect()
        await send({"type": "http.response.start", "status": CLIENT_CLOSED_REQUEST, "headers": []})
        await send({"type": "http.response.body", "body": b""})


class AccessLog:
    """Log one record per request: route, status, duration, caller, task and version. Texts are never logged."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in UNLOGGED_PATHS:
            await self._app(scope, receive, send)
            return
        started_at = monotonic()
        fields: dict[str, Any] = {"status": 500}

        async def send_and_record(message: Message) -> None:
            if message["type"] == "http.response.start":
                fields["status"] = message["status"]
                headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in message.get("headers", ())}
                fields.update(
                    {name.removeprefix("x-").replace("-", "_"): headers[name] for name in LOGGED_HEADERS if name in headers}
                )
            await send(message)

        try:
            await self._app(scope, receive, send_and_record)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            caller = scope.get("state", {}).get("caller")
            milliseconds = round(1000 * (monotonic() - started_at), 1)
            await log.ainfo("request", method=scope["method"], route=route, caller=caller, ms=milliseconds, **fields)
