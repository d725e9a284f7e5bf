"""The connection pool of the HTTP clients, and the conversion of error bodies to exceptions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from ifed.errors import IFedError, Malformed, Overloaded, Unavailable
from ifed.messages.rounds import Page

Answer = TypeVar("Answer", bound=BaseModel)
LONGEST_RETRY_AFTER = 86_400.0
UNNAMED = {429: Overloaded.__name__, 500: Unavailable.__name__} | dict.fromkeys((502, 503, 504), Unavailable.__name__)


def retry_after_seconds(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header, at most a day; None if it is missing or no whole number.

    A date is taken for none: the retry then comes after the usual wait.
    """
    if value is None or not (value.isascii() and value.isdigit()):
        return None
    return min(float(value), LONGEST_RETRY_AFTER)


def raise_refusal(response: httpx.Response) -> None:
    """Raise the exception that an error response names; return if it is no error.

    Raises:
        IFedError: the class named in the body, with its detail and its Retry-After.
    """
    if response.status_code < 400:
        return
    retry_after = retry_after_seconds(response.headers.get("Retry-After"))
    seconds = None if retry_after is None else int(retry_after)
    try:
        body = response.json()
        name, detail = body["error"], body["detail"]
    except (ValueError, KeyError, TypeError):
        # no service of ours speaks like this: a proxy does, while the service behind it restarts or is too busy
        name = UNNAMED.get(response.status_code, f"HTTP {response.status_code}")
        detail = f"HTTP {response.status_code} from {response.url}: {response.text[:200]}"
    raise IFedError.named(name, detail, status=response.status_code, retry_after=seconds)


def _parsed(kind: type[Answer], response: httpx.Response) -> Answer:
    try:
        return kind.model_validate_json(response.content)
    except ValidationError as reason:
        raise Unavailable(f"{response.url} answered what is no {kind.__name__}; is it the service it should be?") from reason


def _loopback(url: str) -> bool:
    """Return whether `url` is on this machine, where no proxy is used."""
    return httpx.URL(url).host in ("127.0.0.1", "localhost", "::1")


def check_token(token: str) -> None:
    """Check that a token can be sent in a header, unlike the ellipsis of a copied example.

    Raises:
        Malformed: the token contains a character that cannot.
    """
    if not (token.isascii() and token.isprintable()):
        raise Malformed("this token holds a character that no token has; copy the whole of it, without an ellipsis or a line break")


class ServiceClient:
    """A service: its base URL, a bearer token and a connection pool."""

    def __init__(
        self, url: str, token: str | None = None, *, timeout: float = 60.0, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        if token is not None:
            check_token(token)
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        # A long poll keeps its connection to itself, and there is one for each task that is followed.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
        self._http = httpx.AsyncClient(
            base_url=url, headers=headers, timeout=timeout, transport=transport, limits=limits, trust_env=not _loopback(url)
        )
        self.bytes_up = 0
        self.bytes_down = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = await self._http.request(method, path, **options)
        except httpx.TransportError as reason:
            raise Unavailable(f"{self._http.base_url} cannot be reached ({type(reason).__name__}: {reason})") from reason
        self.bytes_up += len(response.request.content)
        self.bytes_down += len(response.content)
        raise_refusal(response)
        return response

    async def _get(self, kind: type[Answer], path: str, **options: Any) -> Answer:
        return _parsed(kind, await self._send("GET", path, **options))

    async def _post(
        self,
        kind: type[Answer],
        path: str,
        message: BaseModel | None = None,
        *,
        method: str = "POST",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        content = None if message is None else message.model_dump_json(exclude_unset=True)
        headers = {"Content-Type": "application/json"} | dict(headers or {})
        response = await self._send(method, path, content=content, headers=headers)
        return _parsed(kind, response)

    async def _pages(self, item: type[Answer], path: str) -> AsyncIterator[Answer]:
        after: str | None = None
        while True:
            page = await self._get(Page[item], path, params={} if after is None else {"after": after})  # type: ignore[valid-type]
            for entry in page.items:
                yield entry
            if (after := page.next) is None:
                return

    async def ready(self) -> bool:
        """Return whether the service is ready."""
        try:
            await self._send("GET", "/readyz")
        except IFedError:
            return False
        return True
