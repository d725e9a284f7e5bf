"""What the service asks of its storage and its cache, as protocols. Names no implementation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import datetime
from typing import Protocol

from services.aggregator.aggregation import Measure
from services.aggregator.contribution import Contribution
from services.aggregator.domain import Round, Seat
from services.aggregator.ports_access import Audit, EnrolmentCodes
from services.aggregator.ports_events import Events, Webhooks
from services.aggregator.ports_parts import Parts
from services.aggregator.records import Aggregate, FederatedTask, LedgerLine, Membership, Party


class Tasks(Protocol):
    """Tasks by name."""

    async def add(self, task: FederatedTask) -> None:
        """Keep a new task; AlreadyExists when the name is taken."""

    async def get(self, name: str, *, for_update: bool = False) -> FederatedTask:
        """The task, locked until the work ends when `for_update`; UnknownTask when there is none."""

    async def save(self, task: FederatedTask) -> None: ...

    async def delete(self, name: str) -> None:
        """Remove the task with its rounds, contributions and aggregates."""

    async def page(self, after: str | None, limit: int) -> list[FederatedTask]:
        """Tasks by name, those after `after`."""

    async def claim_context(self, now: datetime, until: datetime) -> FederatedTask | None:
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

    async def evaluations(self, task: str) -> list[tuple[int, Measure]]:
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

    def work(self) -> AbstractAsyncContextManager[Work]:
        """A transaction that may write; Unavailable when the database cannot be reached."""

    def reading(self) -> AbstractAsyncContextManager[Work]:
        """A transaction that only reads."""

    async def state(self) -> str:
        """`ok`, or what is wrong."""

    async def close(self) -> None: ...


class Bell(Protocol):
    """Rings when something changed since it was last heard."""

    async def heard(self, seconds: float) -> bool:
        """Wait for a ring, no longer than `seconds`; a ring from before the call counts."""


class Cache(Protocol):
    """Bodies by content-addressed keys, and bells. Never the truth: a read may miss, a write may be lost."""

    async def get(self, key: str) -> bytes | None: ...

    async def put(self, key: str, body: bytes) -> None: ...

    def listen(self, topic: str) -> AbstractContextManager[Bell]:
        """Take a bell before looking at the truth, so that no ring in between is lost."""

    async def announce(self, topic: str) -> None:
        """Ring every bell of the topic, on every replica."""

    async def state(self) -> str:
        """`ok`, or `degraded: …`."""
