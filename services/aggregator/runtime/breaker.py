"""A circuit breaker: after a failure, a service is not called for a while, so that requests do not each wait for it in vain."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

Result = TypeVar("Result")

log = structlog.get_logger(__name__)


class CircuitOpen(Exception):  # the name of the pattern; nothing is wrong with the caller
    """A call failed just now, or it was not made because an earlier one did."""


class CircuitBreaker:
    """Calls Redis, and after a failure not again for some seconds.

    Args:
        seconds: how long to make no calls after a failure.
        errors: the exceptions that count as a failure; all others pass.
        consequence: what the service does meanwhile, for the log.
        on_failure: called with the name of each call that failed.
    """

    def __init__(
        self,
        *,
        seconds: float,
        errors: tuple[type[Exception], ...],
        consequence: str,
        on_failure: Callable[[str], None] | None = None,
    ) -> None:
        self._seconds, self._errors, self._consequence, self._on_failure = seconds, errors, consequence, on_failure
        self._open_until = 0.0
        self._failing = False

    async def call(self, name: str, operation: Callable[[], Awaitable[Result]]) -> Result:
        """Return what `operation` returns.

        Raises:
            CircuitOpen: it failed, or an earlier call did less than `seconds` ago.
        """
        if time.monotonic() < self._open_until:
            raise CircuitOpen
        try:
            result = await operation()
        except self._errors as reason:
            self._open_until = time.monotonic() + self._seconds
            self.failed(name, reason)
            raise CircuitOpen from reason
        if self._failing:
            log.info("redis answers again")
            self._failing = False
        return result

    def failed(self, name: str, reason: Exception) -> None:
        """Count a failure, and log it if it is the first since Redis last answered."""
        if self._on_failure is not None:
            self._on_failure(name)
        if not self._failing:
            log.warning("redis failed", call=name, reason=type(reason).__name__, consequence=self._consequence)
        self._failing = True
