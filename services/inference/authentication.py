"""Authenticate callers by bearer token: against the aggregator, against a key file, or not at all. Only hashes of tokens are kept."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Protocol
from weakref import WeakValueDictionary

import structlog

from ifed.errors import Unauthenticated, Unavailable
from ifed.server.authentication import FailedAttempts, check_token_form

log = structlog.get_logger(__name__)
MAX_CACHED_TOKENS = 10_000
MIN_KEY_CHARACTERS = 16
RETRY_SECONDS = 5.0


class Authenticator(Protocol):
    """Authenticate a caller by its bearer token."""

    async def authenticate(self, token: str | None, *, address: str) -> str:
        """Return the caller's name.

        Args:
            token: of the request.
            address: where the request comes from; failed attempts are counted by it.

        Raises:
            Unauthenticated: there is no token, or it is not valid.
            Overloaded: too many tokens from this address were not valid.
            Unavailable: the token cannot be checked now.
        """
        ...


class OpenAccess:
    """Accept every caller."""

    async def authenticate(self, token: str | None, *, address: str) -> str:  # noqa: ARG002  # any token is accepted
        """Return the name of every caller."""
        return "anyone"


class ApiKeys:
    """Accept callers who send a key of the key file.

    Args:
        keys: the holder's name by the sha256 of the key, as `read_keys` returns it.
        failed_attempts: limits wrong keys.
    """

    def __init__(self, keys: Mapping[str, str], failed_attempts: FailedAttempts) -> None:
        self._keys, self._failed_attempts = keys, failed_attempts

    async def authenticate(self, token: str | None, *, address: str) -> str:
        """Return the name of the key's holder."""
        if (name := self._keys.get(_hash(check_token_form(token)))) is None:
            async with self._failed_attempts.attempt("key", address, address=address):
                raise Unauthenticated("the service's key file does not have this key")
        return name


@dataclass(slots=True)
class _CachedToken:
    """The aggregator's answer about a token: its holder's name, or None for an invalid token."""

    name: str | None
    checked_at: float
    valid_until: float


class RemoteTokens:
    """Accept callers whose token the aggregator knows, and cache its answers.

    While the aggregator is unreachable, callers that it accepted before are accepted for `grace_seconds` after its last answer.

    Args:
        look_up: return the name of a token's holder; raises Unauthenticated for a token that is not valid.
        failed_attempts: limits wrong tokens, and so how often the aggregator is asked about one.
        cache_seconds: how long a valid token is cached before it is looked up again.
        grace_seconds: how long an answer counts while the aggregator is unreachable.
    """

    def __init__(
        self,
        look_up: Callable[[str], Awaitable[str]],
        failed_attempts: FailedAttempts,
        *,
        cache_seconds: float,
        grace_seconds: float,
    ) -> None:
        self._failed_attempts = failed_attempts
        self._look_up, self._cache_seconds, self._grace_seconds = look_up, cache_seconds, grace_seconds
        self._tokens: OrderedDict[str, _CachedToken] = OrderedDict()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def authenticate(self, token: str | None, *, address: str) -> str:
        """Return the name of the token's holder."""
        token = check_token_form(token)
        key = _hash(token)
        cached = self._tokens.get(key)
        if cached is None or monotonic() >= cached.valid_until:
            lock = self._locks.setdefault(key, asyncio.Lock())
            async with lock:  # concurrent requests with the same token ask the aggregator once
                cached = self._tokens.get(key)
                if cached is None or monotonic() >= cached.valid_until:
                    if cached is None or cached.name is None:
                        return await self._first_check(key, token, address)
                    cached = await self._check(key, token, cached)
        return _name_of(cached)

    async def _first_check(self, key: str, token: str, address: str) -> str:
        async with self._failed_attempts.attempt("token", address, address=address):
            return _name_of(await self._check(key, token, None))

    async def _check(self, key: str, token: str, expired: _CachedToken | None) -> _CachedToken:
        now = monotonic()
        try:
            checked = _CachedToken(await self._look_up(token), now, now + self._cache_seconds)
        except Unauthenticated:
            checked = _CachedToken(None, now, now + RETRY_SECONDS)
        except Unavailable as reason:
            if expired is None or expired.name is None or now > expired.checked_at + self._grace_seconds:
                raise Unavailable("the aggregator, which checks tokens, is unreachable; try again later") from reason
            log.warning("token not checked, aggregator unreachable", caller=expired.name)
            expired.valid_until = now + RETRY_SECONDS
            return expired
        self._tokens[key] = checked
        self._tokens.move_to_end(key)
        if len(self._tokens) > MAX_CACHED_TOKENS:
            self._tokens.popitem(last=False)
        return checked


def read_keys(text: str) -> dict[str, str]:
    """Parse a key file: a name and a key on each line, separated by white space; `#` starts a comment.

    Returns:
        the holder's name by the sha256 of the key, hexadecimal.

    Raises:
        ValueError: a line is malformed, named by its number, or there is no key.
    """
    keys: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or len(words[1]) < MIN_KEY_CHARACTERS:
            raise ValueError(f"line {number} of the key file is not a name and a key of {MIN_KEY_CHARACTERS} characters or more")
        keys[_hash(words[1])] = words[0]
    if not keys:
        raise ValueError("the key file has no key")
    return keys


def _name_of(checked: _CachedToken) -> str:
    if checked.name is None:
        raise Unauthenticated("the aggregator does not know this bearer token, or it was revoked")
    return checked.name


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
