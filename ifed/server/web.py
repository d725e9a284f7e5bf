"""What every application mounts: error handlers, request ids, HEAD, /livez, /readyz, /health, /metrics, the limits on bodies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import structlog
from asgi_correlation_id import CorrelationIdMiddleware
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_fastapi_instrumentator import Instrumentator
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as ASGIMessage

from ifed.errors import IFedError, Malformed, Unauthenticated, Unavailable
from ifed.messages.rounds import ErrorBody
from ifed.messages.validation import describe_errors, shorten
from ifed.server import openapi
from ifed.server.bodies import BodyLimit, RefusedBody

log = structlog.get_logger(__name__)
UNREADABLE = 400  # FastAPI's word for a body that is not even text; our refusal of it is the same as of any other malformed body
LONGEST_DETAIL = 4000  # characters; a refusal may quote what the caller sent
BODY_SECONDS = 60.0
ReadinessChecks = Callable[[], Awaitable[dict[str, str]]]


class Readiness(BaseModel):
    """The response of /readyz: every check by name, `ok` or what is wrong."""

    ready: bool
    checks: dict[str, str] = Field(examples=[{"database": "ok", "cache": "ok"}])


def mount(
    app: FastAPI,
    *,
    readiness: ReadinessChecks,
    registry: CollectorRegistry,
    max_body_bytes: int | None = None,
    body_seconds: float = BODY_SECONDS,
    shows_metrics: bool = True,
) -> None:
    """Add to `app` what all applications share.

    Args:
        app: the application; its routes may be added before or after.
        readiness: returns checks by name; `ok` counts as ready, and so does text that begins with `degraded`.
        registry: the metrics of /metrics; one per application, so that two in one process do not collide.
        max_body_bytes: a larger request body is refused with TooLarge while it streams in; no limit if None.
        body_seconds: a request body that takes longer is refused with BodyTimeout.
        shows_metrics: whether /metrics is a route of the application; otherwise see `metrics_on_port`.
    """
    app.add_exception_handler(IFedError, _refusal)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)
    if max_body_bytes is not None:
        app.add_middleware(BodyLimit, max_bytes=max_body_bytes, seconds=body_seconds)
    app.add_middleware(HeadAsGet)
    app.add_middleware(CorrelationIdMiddleware, header_name="X-Request-ID")
    instrumentator = Instrumentator(registry=registry, excluded_handlers=["/livez", "/readyz", "/health", "/metrics"]).instrument(
        app
    )
    if shows_metrics:
        instrumentator.expose(app, endpoint="/metrics", tags=["health"], response_class=PlainTextResponse)
    app.include_router(_health(readiness))


@contextmanager
def metrics_on_port(host: str, port: int | None, registry: CollectorRegistry) -> Iterator[None]:
    """Serve the metrics on a port of their own within the block, which a network can keep callers from; do nothing without a port.

    Raises:
        Unavailable: the port is in use or not allowed.
    """
    if port is None:
        yield
        return
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as reason:
        raise Unavailable(
            f"cannot listen on {host} port {port} for metrics ({reason.strerror}); set METRICS_PORT to one that is free"
        ) from reason
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def documentation(*, shown: bool) -> dict[str, Any]:
    """Return the arguments of `FastAPI` that turn /docs, /redoc and /openapi.json on or off."""
    return {} if shown else {"docs_url": None, "redoc_url": None, "openapi_url": None}


class HeadAsGet:
    """Answer HEAD as GET without its body on every route, as RFC 9110 asks for and monitors send it; FastAPI does not."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        ended = False

        async def send_head(message: ASGIMessage) -> None:
            nonlocal ended
            if message["type"] == "http.response.start":
                await send(message)
            elif not ended:
                ended = True
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        await self._app({**scope, "method": "GET"}, receive, send_head)


def describe(app: FastAPI, examples: Mapping[str, object], *, metrics: str = openapi.METRICS) -> None:
    """Give the OpenAPI description of `app` an example for every body and refusal, when it is first requested.

    Args:
        examples: by schema name; none for a schema whose fields have their own examples.
        metrics: an example line of /metrics.
    """
    framework = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = openapi.complete(framework(), examples, metrics=metrics)
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]  # FastAPI's own way to change it


def refusals(*kinds: type[IFedError]) -> dict[int | str, dict[str, Any]]:
    """Return the `responses=` of a route: every refusal that it may give, grouped by status."""
    by_status: dict[int | str, list[str]] = {}
    for kind in kinds:
        by_status.setdefault(kind.status, []).append(kind.__name__)
    return {status: {"model": ErrorBody, "description": " or ".join(names)} for status, names in by_status.items()}


def _answer(status: int, error: str, detail: str, *, retry_after: int | None = None) -> JSONResponse:
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    if status == Unauthenticated.status:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(ErrorBody(error=error, detail=shorten(detail, LONGEST_DETAIL)).model_dump(), status, headers)


async def _refusal(_request: Request, reason: Exception) -> JSONResponse:
    assert isinstance(reason, IFedError)
    return _answer(reason.status, type(reason).__name__, reason.detail, retry_after=reason.retry_after)


async def _malformed(_request: Request, reason: Exception) -> JSONResponse:
    assert isinstance(reason, RequestValidationError)
    return _answer(Malformed.status, Malformed.__name__, describe_errors(reason.errors()))


async def _http(request: Request, reason: Exception) -> JSONResponse:
    assert isinstance(reason, HTTPException)
    if isinstance(reason, RefusedBody):
        return await _refusal(request, reason.refusal)
    if reason.status_code == UNREADABLE:
        return _answer(Malformed.status, Malformed.__name__, "body: it cannot be read; send JSON in UTF-8")
    names = {404: "NotFound", 405: "MethodNotAllowed"}
    answer = _answer(reason.status_code, names.get(reason.status_code, "HTTPError"), str(reason.detail))
    answer.headers.update(reason.headers or {})
    return answer


async def _unexpected(request: Request, reason: Exception) -> JSONResponse:
    await log.aexception("unexpected error", method=request.method, path=request.url.path, exc_info=reason)
    return _answer(500, "InternalError", "Internal server error")


def _health(readiness: ReadinessChecks) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/livez", responses={200: {"content": {openapi.JSON: {"example": {"status": "ok"}}}}})
    async def livez() -> dict[str, str]:
        """Report that the process responds."""
        return {"status": "ok"}

    @router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness, "description": "not ready"}})
    @router.get("/health", response_model=Readiness, responses={503: {"model": Readiness, "description": "not ready"}})
    async def readyz() -> JSONResponse:
        """Report every readiness check: 200 if each is `ok` or `degraded…`, otherwise 503. `/health` is the path that monitors try."""
        checks = await readiness()
        ready = all(words == "ok" or words.startswith("degraded") for words in checks.values())
        return JSONResponse(Readiness(ready=ready, checks=checks).model_dump(), 200 if ready else 503)

    return router
