"""What the service asks of its storage about the parts of a context vector, as a protocol. Names no implementation."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from services.aggregator.contribution import Contribution, Entry
from services.aggregator.records import Part


class Parts(Protocol):
    """What clients sent for a task's context vector: in its round, and later with a change of their own."""

    async def add(self, task: str, number: int, change: int, contribution: Contribution) -> None:
        """Keep what came after the context round, `number`, had closed."""

    async def find(self, task: str, client: str, digest: str) -> Entry | None:
        """What the client sent with this digest, if it counts."""

    async def holds(self, task: str, client: str) -> bool:
        """Whether anything of the client counts in the context vector of a closed round."""

    async def withdraw(self, task: str, client: str, change: int) -> int:
        """Let all of the client's parts count no more from `change` on; how many they were."""

    def bodies(self, task: str, number: int, changes: int) -> AsyncIterator[Part]:
        """What counted after so many changes, by client and then in the order it came, a few at a time."""
