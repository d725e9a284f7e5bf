"""What the service asks of its storage about events and webhooks, as protocols. Names no implementation."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from services.aggregator.records import Delivery, Happening, Webhook


class Events(Protocol):
    """What happened, in the order of its commits; it only grows."""

    async def add(self, happenings: Sequence[Happening]) -> list[Happening]:
        """Keep them, and give them with their numbers.

        The last thing a transaction does: from here to its commit no other one may add, so that no reader ever sees a number before
        a smaller one.
        """

    async def page(self, after: int, limit: int, task: str | None = None) -> list[Happening]:
        """Events by number, those after `after`, of one task where it is named."""

    async def newest(self) -> int:
        """The highest number given; 0 when nothing has happened."""


class Webhooks(Protocol):
    """Receivers of events, and what is on its way to them."""

    async def add(self, webhook: Webhook) -> None:
        """Keep a new webhook; AlreadyExists when the name is taken."""

    async def get(self, name: str) -> Webhook:
        """The webhook; UnknownWebhook when there is none."""

    async def delete(self, name: str) -> None:
        """Remove a webhook with its deliveries; UnknownWebhook when there is none."""

    async def page(self, after: str | None, limit: int) -> list[tuple[Webhook, int]]:
        """Webhooks by name, each with how many deliveries are pending."""

    async def all(self, *, lasting: bool = False) -> list[Webhook]:
        """Every webhook by name; with `lasting` none of them can be removed before the transaction ends."""

    async def queue(self, wanted: Sequence[tuple[str, Happening]], now: datetime) -> None:
        """Keep that events are to be delivered to webhooks, from now on."""

    async def due(self, now: datetime) -> list[str]:
        """Webhooks to which something is to be delivered now and whom nobody delivers to."""

    async def claim(self, name: str, now: datetime, until: datetime) -> bool:
        """Take a webhook to oneself until then; False when someone else has it, or it is gone. A claim that ran out is free again."""

    async def release(self, name: str) -> None: ...

    async def pending(self, name: str, now: datetime, limit: int) -> list[Delivery]:
        """What is to be delivered to a webhook now, the oldest event first."""

    async def settle(self, name: str, delivery: Delivery, until: datetime) -> None:
        """Keep the outcome of an attempt, and the webhook to oneself until then."""

    async def deliveries(self, name: str, after: int, limit: int) -> list[Delivery]:
        """Deliveries to a webhook by the number of the event, those after `after`."""
