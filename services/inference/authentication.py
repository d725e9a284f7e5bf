"""Who may ask: nobody without a token, unless the operator said so. Knows no HTTP; tokens are kept as hashes only."""

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

log = structlog.get_logger(__name__)
MOST_REMEMBERED = 10_000
SHORT_SECONDS = 5.0


class Access(Protocol):
    """Lets a caller in by its bearer token, or refuses."""

    async def admit(self, token: str | None) -> str:
        """The caller's name.

        Raises:
            Unauthenticated: no token, or one that is not known.
            Unavailable: it cannot be told now.
        """
        ...


class OpenAccess:
    """Everyone may ask."""

    async def admit(self, token: str | None) -> str:  # noqa: ARG002  # whoever it is
        return "anyone"


class ApiKeys:
    """Whoever holds one of a list of keys may ask.

    Args:
        keys: name by the sha256 of the key, as `read_keys` gives them.
    """

    def __init__(self, keys: Mapping[str, str]) -> None:
        self._keys = keys

    async def admit(self, token: str | None) -> str:
        if (name := self._keys.get(_hash(_given(token)))) is None:
            raise Unauthenticated("this key is not in the service's key file")
        return name


@dataclass(slots=True)
class _Remembered:
    name: str | None
    told: float
    until: float


class RemoteTokens:
    """Asks the aggregator who a token speaks for, and remembers the answer for a while.

    While the aggregator cannot be reached, tokens that it knew before are still let in, for `grace` seconds after the last yes.

    Args:
        whose: the name of a token's holder; raises Unauthenticated for a token that is not known.
        remember: seconds until the aggregator is asked about the same token again.
    """

    def __init__(self, whose: Callable[[str], Awaitable[str]], *, remember: float, grace: float) -> None:
        self._whose, self._remember, self._grace = whose, remember, grace
        self._known: OrderedDict[str, _Remembered] = OrderedDict()
        self._asking: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def admit(self, token: str | None) -> str:
        given = _given(token)
        key = _hash(given)
        known = self._known.get(key)
        if known is None or monotonic() >= known.until:
            lock = self._asking.setdefault(key, asyncio.Lock())
            async with lock:  # one question, however many requests bring the same token
                known = self._known.get(key)
                if known is None or monotonic() >= known.until:
                    known = await self._ask(key, given, known)
        if known.name is None:
            raise Unauthenticated("the bearer token is not known to the aggregator, or it was revoked")
        return known.name

    async def _ask(self, key: str, token: str, before: _Remembered | None) -> _Remembered:
        now = monotonic()
        try:
            found = _Remembered(await self._whose(token), now, now + self._remember)
        except Unauthenticated:
            found = _Remembered(None, now, now + SHORT_SECONDS)
        except Unavailable as reason:
            if before is None or before.name is None or now > before.told + self._grace:
                raise Unavailable("the aggregator, which knows the tokens, cannot be reached; try again") from reason
            log.warning("token not checked", caller=before.name)
            before.until = now + SHORT_SECONDS
            return before
        self._known[key] = found
        self._known.move_to_end(key)
        if len(self._known) > MOST_REMEMBERED:
            self._known.popitem(last=False)
        return found


def read_keys(text: str) -> dict[str, str]:
    """A key file: a name and a key on each line, with white space between; `#` begins a comment.

    Raises:
        ValueError: a line of another form, by its number; or no key at all.
    """
    keys: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or len(words[1]) < 16:
            raise ValueError(f"line {number} of the key file is not a name and a key of 16 characters or more")
        keys[_hash(words[1])] = words[0]
    if not keys:
        raise ValueError("the key file holds no key")
    return keys


def _given(token: str | None) -> str:
    if token is None:
        raise Unauthenticated("send a bearer token: Authorization: Bearer …")
    return token


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
