"""Limits on connections that uvicorn does not have: their number, the size of a request's head, and how long a caller may take."""

from __future__ import annotations

import asyncio
import resource
from http import HTTPStatus
from typing import Any, ClassVar

import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

log = structlog.get_logger(__name__)
MAX_HEAD_BYTES = 64 * 1024
HEAD_SECONDS = 15.0
WRITE_SECONDS = 60.0
GRACE_SECONDS = 5.0
LINGER_SECONDS = 1.0
OTHER_FILES = 100  # files and sockets of the process that are no caller's connection: database, Redis, models, logs


class LimitedProtocol(HttpToolsProtocol):
    """HTTP/1.1 on one connection, with limits.

    A connection is closed when the head of its next request, or the rest of a body, does not arrive in time, when its caller does not
    read an answer, or, while all connections are in use, when it is the one that has been idle for longest.

    Attributes:
        max_connections: connections that may be open.
        body_seconds: the time in which a body must arrive; the application, which answers, has the same limit.
        head_seconds: the time in which the request line and the headers must arrive.
        idle_since: the time on the loop's clock since which no request has been answered.
    """

    max_connections: ClassVar[int]
    body_seconds: ClassVar[float]
    head_seconds: ClassVar[float]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._in_head, self._head_bytes, self._refused = True, 0, False
        self._deadline: asyncio.TimerHandle | None = None
        self.idle_since = self.loop.time()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn declares it
        """Accept a connection; close the one that has been idle for longest, or this one, if there are too many."""
        super().connection_made(transport)
        self._expect_within(self.head_seconds)
        if len(self.connections) > self.max_connections:
            idle = [
                other for other in self.connections if isinstance(other, LimitedProtocol) and other.is_idle and other is not self
            ]
            if idle:
                min(idle, key=lambda other: other.idle_since).abort()
            else:
                self._refuse(
                    HTTPStatus.SERVICE_UNAVAILABLE, "Unavailable", "all connections of the service are in use; try again later"
                )

    @property
    def is_idle(self) -> bool:
        """Whether no request of this connection is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def abort(self) -> None:
        """Close the connection now, and drop it from the count."""
        self.connections.discard(self)
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._expect_within(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what arrived, up to the limit of a head while one arrives."""
        if self._refused:  # closing with unread data would reset the connection, and the caller might never see the answer
            return
        if self._in_head:
            if self._deadline is None:
                self._expect_within(self.head_seconds)
            room = MAX_HEAD_BYTES - self._head_bytes
            head, data = data[:room], data[room:]
            self._head_bytes += len(head)
            if head:
                super().data_received(head)
            if not data or self.transport.is_closing():
                return
            if self._in_head:
                words = f"the request line and the headers are larger than {MAX_HEAD_BYTES} bytes"
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "TooLarge", words)
                return
        super().data_received(data)

    def on_headers_complete(self) -> None:
        """Start a request; its body has its own time."""
        self._in_head = False
        self._expect_within(self.body_seconds + GRACE_SECONDS)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End the body; the answer may take its time, and the next head is waited for after it."""
        self._in_head, self._head_bytes = True, 0
        self._expect_within(None)
        super().on_message_complete()
        if self.is_idle:  # refused before all of its body had come
            self._wait_for_head()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of the body of this one."""
        super().on_response_complete()
        if self._in_head and self.is_idle:
            self._wait_for_head()

    def pause_writing(self) -> None:
        """Wait for a caller that does not read, but not for ever."""
        super().pause_writing()
        self._expect_within(WRITE_SECONDS)

    def resume_writing(self) -> None:
        """Go on writing."""
        super().resume_writing()
        self._expect_within(None)

    def _wait_for_head(self) -> None:
        self.idle_since = self.loop.time()
        self._expect_within(self.timeout_keep_alive + self.head_seconds)

    def _expect_within(self, seconds: float | None) -> None:
        """Close the connection unless this is called again within `seconds`; None stops the clock."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self.abort)

    def _refuse(self, status: HTTPStatus, error: str, detail: str) -> None:
        """Answer without the application, and close the connection once the caller has had time to read that."""
        body = f'{{"error":"{error}","detail":"{detail}"}}'
        lines = [f"HTTP/1.1 {status.value} {status.phrase}", "content-type: application/json", f"content-length: {len(body)}"]
        self.transport.write("\r\n".join([*lines, "connection: close", "", body]).encode())
        self._refused = True
        self._expect_within(LINGER_SECONDS)


def limited_protocol(*, max_connections: int, body_seconds: float, head_seconds: float = HEAD_SECONDS) -> type[LimitedProtocol]:
    """Return the `http` of a `uvicorn.Config`: a protocol with these limits.

    Args:
        max_connections: open connections; fewer where the process may not open so many files.
        body_seconds: the time in which a body must arrive.
        head_seconds: the time in which the request line and the headers must arrive.
    """
    possible = possible_connections(max_connections)
    if possible < max_connections:
        log.warning("fewer connections than set, because the process may open too few files", connections=possible)
    limits = {"max_connections": possible, "body_seconds": body_seconds, "head_seconds": head_seconds}
    return type("Protocol", (LimitedProtocol,), limits)


def possible_connections(max_connections: int) -> int:
    """Return the number of connections, at most `max_connections`, for which the process may open files."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max_connections if files == resource.RLIM_INFINITY else min(max_connections, max(1, files - OTHER_FILES))
