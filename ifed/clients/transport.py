"""The connection pool of the HTTP clients, and the conversion of error bodies to exceptions."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from ifed.errors import IFedError, Malformed, Overloaded, Unavailable, UnreadableAnswer
from ifed.messages.rounds import ErrorBody, Page

Answer = TypeVar("Answer", bound=BaseModel)
LONGEST_RETRY_AFTER = 86_400.0
MAX_ANSWER_BYTES = 64 * 2**20
TRANSFER_SECONDS = 600.0  # for an answer that has begun; one that never ends is given up
MOST_RETRY_SECONDS = 3600
LONGEST_DETAIL = 2000
UNNAMED = {429: Overloaded.__name__, 500: Unavailable.__name__} | dict.fromkeys((502, 503, 504), Unavailable.__name__)


def retry_after_seconds(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header, at most a day; None if it is missing or no whole number.

    A date is taken for none: the retry then comes after the usual wait.
    """
    if value is None or not (value.isascii() and value.isdigit()):
        return None
    return min(float(value), LONGEST_RETRY_AFTER)


def is_service_url(url: str) -> bool:
    """Return whether a string is the URL of a service: http or https, with a host and, if any, a valid port."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    whole = "[" not in url or "]" in url
    return whole and parsed.scheme in ("http", "https") and bool(parsed.host) and (parsed.port is None or 0 < parsed.port < 65_536)


def raise_refusal(response: httpx.Response) -> None:
    """Raise the exception that an error response names; return if it is no error.

    Raises:
        IFedError: the class named in the body, with its detail and its Retry-After.
    """
    if response.status_code < 400:
        return
    try:
        body = ErrorBody.model_validate_json(response.content)
        name, detail = body.error, body.detail
    except ValidationError:
        # no service of ours speaks like this: a proxy does, while the service behind it restarts or is too busy
        name = UNNAMED.get(response.status_code, f"HTTP {response.status_code}")
        detail = f"HTTP {response.status_code} from {response.url}: {' '.join(response.text[:200].split())}"
    raise IFedError.named(_printable(name), _printable(detail), status=response.status_code, retry_after=_retry_after(response))


def _retry_after(response: httpx.Response) -> int | None:
    """Return the seconds of the Retry-After header, an hour at the most; None if it has none or a date."""
    value = response.headers.get("Retry-After", "")
    if not (value.isascii() and value.isdigit()):
        return None
    return min(int(value[:10]), MOST_RETRY_SECONDS)


def _printable(words: str) -> str:
    """Return words of another service as a terminal and a log may show them: cut, and without control characters."""
    return "".join(character if character.isprintable() else " " for character in words[:LONGEST_DETAIL])


def parsed(kind: type[Answer], response: httpx.Response) -> Answer:
    """Parse the JSON of an answer.

    Raises:
        UnreadableAnswer: it is no such message.
    """
    try:
        return kind.model_validate_json(response.content)
    except ValidationError as reason:
        raise UnreadableAnswer(f"{response.url} answered what is no {kind.__name__}; is it the service it should be?") from reason


def check_content_encoding(response: httpx.Response) -> None:
    """Check that an answer is not compressed, which no client asks for: a small one can unpack to gigabytes.

    Raises:
        UnreadableAnswer: it is.
    """
    if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
        raise UnreadableAnswer(f"{response.url} answered in the encoding {encoding[:20]!r}; turn compression off there")


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


def _ssl_context(ca_file: Path | None) -> ssl.SSLContext:
    """Return what HTTPS trusts: the certificates of `ca_file`, else of SSL_CERT_FILE or SSL_CERT_DIR, else the usual authorities.

    Raises:
        Malformed: a file cannot be read.
    """
    try:
        return httpx.create_ssl_context() if ca_file is None else ssl.create_default_context(cafile=ca_file)
    except OSError as reason:
        source = "SSL_CERT_FILE" if ca_file is None else f"the CA file {ca_file}"
        raise Malformed(f"{source} cannot be read as certificates in PEM format ({reason.strerror or reason})") from reason


def _why(reason: Exception) -> str:
    """Describe a broken connection; of a certificate that is not trusted, say what to set."""
    words = f"{type(reason).__name__}: {reason}"
    if "CERTIFICATE_VERIFY_FAILED" not in words:
        return words
    if "expired" in words or "not yet valid" in words:
        return f"{words}; renew its certificate, or set the clock of this machine"
    return f"{words}; name the certificate of its authority by SSL_CERT_FILE, or CA_FILE for an agent or the inference service"


class ServiceClient:
    """A service: its base URL, a bearer token and a connection pool.

    Args:
        url: the base URL.
        token: the bearer token.
        timeout: seconds without a byte after which a request is given up.
        transport: instead of the network, in tests.
        ca_file: certificates in PEM format to trust instead of the usual authorities.
        proxy: URL of the proxy; by default the environment's (HTTPS_PROXY and its siblings), and none on loopback.
        max_bytes: size of an answer; a larger one is refused while it arrives.

    Raises:
        Malformed: the token, the CA file or a proxy cannot be used.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout: float = 60.0,
        transport: httpx.AsyncBaseTransport | None = None,
        ca_file: Path | None = None,
        proxy: str | None = None,
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> None:
        if token is not None:
            check_token(token)
        headers = {"Accept-Encoding": "identity"} | ({} if token is None else {"Authorization": f"Bearer {token}"})
        # A long poll keeps its connection to itself, and there is one for each task that is followed.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
        verify = _ssl_context(ca_file) if transport is None else True  # which takes milliseconds
        try:
            self._http = httpx.AsyncClient(
                base_url=url,
                headers=headers,
                timeout=timeout,
                transport=transport,
                limits=limits,
                verify=verify,
                proxy=proxy,
                trust_env=proxy is None and not _loopback(url),  # only the proxy is taken from it; `verify` has its certificates
            )
        except (ValueError, ImportError, httpx.InvalidURL):  # the message may hold a password
            raise Malformed(
                "a proxy cannot be used; set PROXY_URL, or HTTP_PROXY, HTTPS_PROXY and ALL_PROXY, to http://host:port, or to nothing"
            ) from None
        self._max_bytes = max_bytes
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
        request = self._http.build_request(method, path, **options)
        seconds = (request.extensions["timeout"]["read"] or 0.0) + TRANSFER_SECONDS
        try:
            async with asyncio.timeout(seconds):
                response = await self._http.send(request, stream=True)
                try:
                    body = await self._read(response)
                finally:
                    await response.aclose()
        except TimeoutError as reason:
            raise Unavailable(f"{self._http.base_url} did not finish its answer within {seconds:.0f} seconds") from reason
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError) as reason:
            raise Unavailable(f"{self._http.base_url} cannot be reached ({_why(reason)})") from reason
        self.bytes_up += len(request.content)
        self.bytes_down += len(body)
        response = httpx.Response(response.status_code, headers=response.headers, content=body, request=request)
        raise_refusal(response)
        if response.has_redirect_location:
            raise UnreadableAnswer(
                f"{response.url} redirects to another address, which is not followed; set the URL of the service itself"
            )
        return response

    async def _read(self, response: httpx.Response) -> bytes:
        """Return the body of an answer, while it streams in.

        Raises:
            UnreadableAnswer: it is compressed, or larger than this client takes.
        """
        check_content_encoding(response)
        body = bytearray()
        async for part in response.aiter_bytes():
            body += part
            if len(body) > self._max_bytes:
                raise UnreadableAnswer(f"{response.url} answered with more than the {self._max_bytes} bytes that this client takes")
        return bytes(body)

    async def _get(self, kind: type[Answer], path: str, **options: Any) -> Answer:
        return parsed(kind, await self._send("GET", path, **options))

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
        return parsed(kind, response)

    async def _pages(self, item: type[Answer], path: str, *, after: str | None = None) -> AsyncIterator[Answer]:
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
