"""What the service asks of its storage and its cache, as protocols. Names no implementation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Protocol

from services.aggregator.domain.access import AuditEntry, EnrolmentCode, Party
from services.aggregator.domain.aggregates import Aggregate, ContextPart, LedgerLine
from services.aggregator.domain.contribution import Contribution, ContributionRecord
from services.aggregator.domain.evaluation import EvaluationResult
from services.aggregator.domain.events import Delivery, DomainEvent, Webhook
from services.aggregator.domain.round import Round, Seat
from services.aggregator.domain.task import Membership, Task


class Tasks(Protocol):
    """Tasks by name."""

    async def add(self, task: Task) -> None:
        """Keep a new task; AlreadyExists when the name is taken."""

    async def get(self, name: str, *, for_update: bool = False) -> Task:
        """The task, locked until the work ends when `for_update`; UnknownTask when there is none."""

    async def save(self, task: Task) -> None: ...

    async def delete(self, name: str) -> None:
        """Remove the task with its rounds, contributions and aggregates."""

    async def page(self, after: str | None, limit: int) -> list[Task]:
        """Tasks by name, those after `after`."""

    async def claim_context(self, now: datetime, until: datetime) -> Task | None:
        """One task whose context vector is behind its additions and withdrawals, claimed until `until` as rounds are."""

    async def release_context(self, name: str) -> None:
        """End the claim."""


class Parties(Protocol):
    """Who holds a token."""

    async def add(self, party: Party) -> None:
        """Keep a new party; AlreadyExists when the name is taken."""

    async def get(self, name: str, *, for_update: bool = False) -> Party:
        """The party; UnknownClient when there is none."""

    async def by_token(self, token_hash: str) -> Party | None: ...

    async def save(self, party: Party) -> None: ...

    async def saw(self, when: Mapping[str, datetime]) -> None:
        """Keep when parties last called, and nothing else of them."""

    async def page(self, after: str | None, limit: int) -> list[Party]: ...


class Memberships(Protocol):
    """Who joined which task."""

    async def put(self, membership: Membership) -> None:
        """Keep a membership; joining again keeps the first time and takes the new counts, and the withdrawal."""

    async def find(self, task: str, client: str) -> Membership | None:
        """The membership, a withdrawn one too."""

    async def of_task(self, task: str) -> list[Membership]:
        """Members by name, without those that have withdrawn."""

    async def tasks_of(self, client: str) -> list[str]:
        """The client's tasks by name."""

    async def remove(self, task: str, client: str | None = None) -> None:
        """Forget one membership, or all of the task's."""


class Rounds(Protocol):
    """Rounds, their seats and their contributions."""

    async def add(self, round_: Round, clients: Sequence[str]) -> None:
        """Keep a new round with a seat for each client; WrongState when the task has a live one."""

    async def get(self, task: str, number: int, *, for_update: bool = False) -> Round:
        """The round; UnknownRound when there is none."""

    async def newest(self, task: str, *, for_update: bool = False) -> Round | None: ...

    async def save(self, round_: Round) -> None: ...

    async def page(self, task: str, after: int, limit: int) -> list[Round]: ...

    async def due(self, now: datetime) -> list[tuple[str, int]]:
        """Open rounds past their deadline."""

    async def claim(self, now: datetime, until: datetime) -> Round | None:
        """One round to aggregate that nobody works on, claimed until `until`; a claim that ran out is free again."""

    async def evaluations(self, task: str) -> list[tuple[int, EvaluationResult]]:
        """Versions that were not withdrawn and what they measured, in the order of the rounds that measured them."""

    async def seat(self, task: str, number: int, client: str) -> Seat | None: ...

    async def seats(self, task: str, numbers: Iterable[int]) -> dict[int, list[Seat]]:
        """The seats of several rounds, by client name."""

    async def missing(self, task: str, number: int) -> list[str]:
        """Clients that have a seat and have not contributed, by name."""

    async def unseat(self, task: str, number: int, client: str) -> None: ...

    async def record(self, round_: Round, contribution: Contribution) -> None:
        """Keep a contribution; AlreadyContributed when the client has one in this round."""

    async def ledger(self, task: str, after: tuple[int, str, int], limit: int) -> list[LedgerLine]:
        """Contributions by round, client and change, those after a round's client's change."""

    def bodies(self, task: str, number: int) -> AsyncIterator[tuple[int, bytes]]:
        """Weight and body of every contribution, in client-id order, a few at a time."""


class Aggregates(Protocol):
    """Context vectors and versions of the coefficients, as the bytes that travel."""

    async def add_context(self, aggregate: Aggregate, body: bytes) -> None: ...

    async def add_coefficients(self, aggregate: Aggregate, body: bytes, moments: bytes | None = None) -> None:
        """Keep a version, with what the server's optimiser remembers at it."""

    async def newest_version(self, task: str) -> int | None:
        """The highest number a version of the task has, withdrawn ones too; None when there is none."""

    async def moments(self, task: str, version: int) -> bytes | None:
        """What the server's optimiser remembers at that version."""

    async def withdraw_after(self, task: str, version: int, at: datetime) -> None:
        """Mark the versions after `version` as gone back from, and `version` itself as not."""

    async def context(self, task: str, version: int | None = None) -> Aggregate:
        """That context vector, the newest when none is named; UnknownVersion, NothingYet when there is none at all."""

    async def contexts(self, task: str, after: int, limit: int) -> list[Aggregate]:
        """Context vectors by version, those after `after`."""

    async def context_body(self, task: str, version: int) -> bytes: ...

    async def coefficients(self, task: str, version: int) -> Aggregate:
        """That version; UnknownVersion when there is none."""

    async def coefficients_body(self, task: str, version: int) -> bytes: ...


class Sketches(Protocol):
    """Context vectors made short, by task, and the search among them."""

    async def put(self, task: str, key: str, numbers: Sequence[float]) -> None:
        """Keep the sketch of a task; a new one takes the place of the old one."""

    async def find(self, task: str) -> tuple[str, list[float]] | None:
        """Key and sketch of a task."""

    async def nearest(self, task: str, key: str, numbers: Sequence[float], limit: int) -> list[tuple[str, float]]:
        """Other finished tasks of the same key that serve a version, with their cosine to `numbers`, the most similar first."""


class Work(Protocol):
    """One transaction. Leaving it without `commit()` changes nothing."""

    @property
    def tasks(self) -> Tasks: ...
    @property
    def parties(self) -> Parties: ...
    @property
    def memberships(self) -> Memberships: ...
    @property
    def rounds(self) -> Rounds: ...
    @property
    def parts(self) -> Parts: ...
    @property
    def aggregates(self) -> Aggregates: ...
    @property
    def enrolments(self) -> EnrolmentCodes: ...
    @property
    def audit(self) -> Audit: ...
    @property
    def sketches(self) -> Sketches: ...
    @property
    def events(self) -> Events: ...
    @property
    def webhooks(self) -> Webhooks: ...

    async def commit(self) -> None: ...


class Store(Protocol):
    """Where the truth is kept."""

    def unit_of_work(self) -> AbstractAsyncContextManager[Work]:
        """A transaction that may write; Unavailable when the database cannot be reached."""

    def read_only(self) -> AbstractAsyncContextManager[Work]:
        """A transaction that only reads."""

    async def state(self) -> str:
        """`ok`, or what is wrong."""

    async def close(self) -> None: ...


class EnrolmentCodes(Protocol):
    """Leave to enrol, by the hash of its code."""

    async def add(self, code: EnrolmentCode) -> None: ...

    async def take(self, code_hash: str, now: datetime) -> EnrolmentCode | None:
        """Mark the code as used and give it; None when there is none, or it is used or expired. Of two takers one gets it."""


class Audit(Protocol):
    """What admins asked for, in order; it only grows."""

    async def add(self, entry: AuditEntry) -> None: ...

    async def page(self, after: int, limit: int) -> list[AuditEntry]:
        """Lines by number, those after `after`."""


class Events(Protocol):
    """What happened, in the order of its commits; it only grows."""

    async def add(self, happenings: Sequence[DomainEvent]) -> list[DomainEvent]:
        """Keep them, and give them with their numbers.

        The last thing a transaction does: from here to its commit no other one may add, so that no reader ever sees a number before
        a smaller one.
        """

    async def page(self, after: int, limit: int, task: str | None = None) -> list[DomainEvent]:
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

    async def queue(self, wanted: Sequence[tuple[str, DomainEvent]], now: datetime) -> None:
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


class Parts(Protocol):
    """What clients sent for a task's context vector: in its round, and later with a change of their own."""

    async def add(self, task: str, number: int, change: int, contribution: Contribution) -> None:
        """Keep what came after the context round, `number`, had closed."""

    async def find(self, task: str, client: str, digest: str) -> ContributionRecord | None:
        """What the client sent with this digest, if it counts."""

    async def holds(self, task: str, client: str) -> bool:
        """Whether anything of the client counts in the context vector of a closed round."""

    async def withdraw(self, task: str, client: str, change: int) -> int:
        """Let all of the client's parts count no more from `change` on; how many they were."""

    def bodies(self, task: str, number: int, changes: int) -> AsyncIterator[ContextPart]:
        """What counted after so many changes, by client and then in the order it came, a few at a time."""
