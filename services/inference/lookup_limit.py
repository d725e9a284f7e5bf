"""The limit of a caller's look-ups at the source of the adapters, so that one caller cannot use up the service's calls."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from time import monotonic

from ifed.errors import Overloaded

WINDOW_SECONDS = 60.0


class LookupLimit:
    """Counts the look-ups of each caller in windows of a minute.

    Args:
        per_minute: look-ups of one caller in a window; None for no limit.
        clock: the time in seconds.
    """

    def __init__(self, per_minute: int | None, *, clock: Callable[[], float] = monotonic) -> None:
        self._per_minute, self._clock = per_minute, clock
        self._counts: Counter[str] = Counter()
        self._window_end = 0.0

    def count(self, caller: str) -> None:
        """Count a look-up.

        Raises:
            Overloaded: the caller has made all look-ups of this minute; `retry_after` says when the minute is over.
        """
        if self._per_minute is None:
            return
        now = self._clock()
        if now >= self._window_end:
            self._counts.clear()
            self._window_end = now + WINDOW_SECONDS
        if self._counts[caller] >= self._per_minute:
            raise Overloaded(
                f"{caller} has named {self._per_minute} tasks or versions in this minute that the service had not loaded; "
                "ask for those that exist, or again when the minute is over",
                retry_after=max(1, math.ceil(self._window_end - now)),
            )
        self._counts[caller] += 1
