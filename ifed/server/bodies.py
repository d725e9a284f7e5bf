"""Limits on request bodies: their size, the time they may take, who may send one, and JSON that can be read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ifed.errors import BodyTimeout, IFedError, Malformed, TooLarge


class RefusedBody(HTTPException):
    """Carry a refusal through FastAPI, which turns any other exception while it reads a body into a 400 of its own."""

    def __init__(self, refusal: IFedError) -> None:
        super().__init__(refusal.status, refusal.detail)
        self.refusal = refusal


class BodyLimit:
    """Limit the size of a request body as it streams in, and the time it may take.

    FastAPI's own `max_body_size` limits the size too, but answers in plain text.

    Args:
        app: the application inside.
        max_bytes: a larger body is refused with TooLarge.
        seconds: a body that is not complete this long after it was first awaited is refused with BodyTimeout.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float) -> None:
        self._app, self._max_bytes, self._seconds = app, max_bytes, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            receive = within_time(within_size(receive, scope, self._max_bytes), self._seconds)
        await self._app(scope, receive, send)


def within_size(receive: Receive, scope: Scope, max_bytes: int) -> Receive:
    """Return a `receive` that refuses a body of more than `max_bytes`, declared or received."""
    declared = Headers(scope=scope).get("content-length", "")
    received = int(declared[:20]) if declared.isdecimal() and int(declared[:20]) > max_bytes else 0

    async def counted() -> Message:
        nonlocal received
        check()
        message = await receive()
        received += len(message.get("body", b""))
        check()
        return message

    def check() -> None:
        if received > max_bytes:
            raise RefusedBody(TooLarge(f"the body is larger than the {max_bytes} bytes taken here"))

    return counted


def within_time(receive: Receive, seconds: float) -> Receive:
    """Return a `receive` that refuses a body which is not complete `seconds` after it was first awaited."""
    deadline: float | None = None
    complete = False

    async def timed() -> Message:
        nonlocal deadline, complete
        if complete:  # what comes after the body is the disconnection, which has no deadline
            return await receive()
        deadline = deadline or asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError as reason:
            raise RefusedBody(BodyTimeout(f"the body did not arrive within {seconds:g} seconds; send it again")) from reason
        complete = not message.get("more_body", False)
        return message

    return timed


class JsonRequest(Request):
    """A request whose JSON is read strictly: no lone surrogates, which no database and no answer can hold, and no deep nesting."""

    async def json(self) -> Any:
        """Return the parsed body; refuse one that is not JSON in UTF-8."""
        try:
            return from_json(await self.body())
        except ValueError as reason:
            raise RefusedBody(Malformed(f"body: it is not JSON in UTF-8 that can be read: {reason}")) from reason


class JsonRoute(APIRoute):
    """A route that authenticates its caller before it reads a JSON body, and limits the body's size.

    Attributes:
        max_json_bytes: the size of a JSON body; None leaves it to the limit of the application.
    """

    max_json_bytes: ClassVar[int | None] = None

    async def authenticate(self, request: Request) -> None:
        """Raise when the caller may not send a body. A subclass does so; here everybody may."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler of the route, which reads the body first and then solves the dependencies, behind these checks."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def handle_checked(request: Request) -> Response:
            await self.authenticate(request)
            receive = request.receive
            if self.max_json_bytes is not None:
                receive = within_size(receive, request.scope, self.max_json_bytes)
            _check_content_type(request)
            return await handle(JsonRequest(request.scope, receive))

        return handle_checked


def _check_content_type(request: Request) -> None:
    """Refuse a body that is not declared as JSON; FastAPI would read it as text and report that it is no object."""
    declared = request.headers.get("content-type", "")
    subtype = declared.partition(";")[0].strip().lower().removeprefix("application/")
    has_body = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
    if has_body and subtype != "json" and not subtype.endswith("+json"):
        raise Malformed(
            f"the body is JSON; send it with the header Content-Type: application/json, not {declared[:100] or 'without one'}"
        )
