"""Where adapters come from and who is told of them, as the service sees them."""

from __future__ import annotations

from typing import Protocol

from ifed.bodies import AdapterBody


class Source(Protocol):
    """Where adapters come from; `ifed.clients.AggregatorClient` is one, a folder another."""

    async def adapter(
        self, task: str, *, version: int | None = None, known: str | None = None, wait: float = 0.0
    ) -> tuple[str, AdapterBody] | None: ...


class AdapterObserver(Protocol):
    """Told what becomes of adapters."""

    def looked_up(self, task: str, *, held: bool) -> None: ...

    def serves(self, task: str, version: int) -> None: ...

    def lets_go(self, task: str) -> None: ...

    def stale(self, task: str) -> None: ...
