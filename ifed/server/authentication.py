"""Bearer tokens of requests, and a limit on failed attempts to authenticate."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from weakref import WeakValueDictionary

import structlog
from fastapi import Request
from fastapi.security import HTTPBearer
from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter
from prometheus_client import Counter

from ifed.errors import Overloaded, Unauthenticated

log = structlog.get_logger(__name__)
LONGEST_TOKEN = 512
CONCURRENT_ATTEMPTS = 4


def check_token_form(token: str | None) -> str:
    """Return the token of a request.

    Raises:
        Unauthenticated: there is none, or it has characters that no token has, or too many.
    """
    if token is None:
        raise Unauthenticated("send a bearer token: Authorization: Bearer …")
    if len(token) > LONGEST_TOKEN or not (token.isascii() and token.isprintable()):
        raise Unauthenticated(f"the bearer token is no token: send at most {LONGEST_TOKEN} printable ASCII characters")
    return token


async def token_of(request: Request, bearer: HTTPBearer) -> str | None:
    """Return the bearer token of a request; None without one."""
    credentials = await bearer(request)
    return credentials.credentials if credentials else None


def address_of(request: Request) -> str:
    """Return the address that a request comes from: an IPv4 address, or the /64 network of an IPv6 address, which one party holds.

    Behind a trusted proxy uvicorn takes it from `X-Forwarded-For`.
    """
    host = request.client.host if request.client else "unknown"
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host[:100]
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))
    return str(address)


class FailedAttempts:
    """Limit the failed attempts to authenticate that come from one address, or that try codes of one prefix, in a minute.

    Each process counts for itself. A few attempts of one key run at a time and the others wait, so that many at once cannot all pass
    before the first is counted.

    Args:
        per_minute: the number of failed attempts; further attempts are refused without being checked.
        counter: counts failed and refused attempts, with the labels `kind` and `outcome`.
    """

    def __init__(self, per_minute: int, counter: Counter) -> None:
        self._item, self._counter = RateLimitItemPerMinute(per_minute), counter
        self._limiter = FixedWindowRateLimiter(MemoryStorage())
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def attempt(self, kind: str, *keys: str, address: str) -> AsyncIterator[None]:
        """Check credentials in the block, which raises Unauthenticated for wrong ones.

        Args:
            kind: what is tried, `token` or `code`.
            keys: what the attempts are counted by; each has the whole limit.
            address: where they come from, for the log.

        Raises:
            Overloaded: too many attempts of a key have failed; the block is not run. `retry_after` says when the minute is over.
        """
        async with AsyncExitStack() as turns:
            for key in keys:
                await turns.enter_async_context(self._turns.setdefault(key, asyncio.Semaphore(CONCURRENT_ATTEMPTS)))
                await self._check(kind, key)
            try:
                yield
            except Unauthenticated:
                self._counter.labels(kind, "refused").inc()
                within = [await self._limiter.hit(self._item, key) and await self._limiter.test(self._item, key) for key in keys]
                await log.awarning("failed authentication", kind=kind, address=address, throttled=not all(within))
                raise

    async def _check(self, kind: str, key: str) -> None:
        if not await self._limiter.test(self._item, key):
            self._counter.labels(kind, "throttled").inc()
            window = await self._limiter.get_window_stats(self._item, key)
            seconds = max(1, math.ceil(window.reset_time - time.time()))
            raise Overloaded("too many failed attempts to authenticate from here; try again later", retry_after=seconds)
