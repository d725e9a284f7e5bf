"""Storage, cache and clock in memory. They sit the same contract suites as the real ones, so tests may trust them."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from ifed.errors import (
    AlreadyContributed,
    AlreadyExists,
    NothingYet,
    UnknownClient,
    UnknownRound,
    UnknownTask,
    UnknownVersion,
    WrongState,
)
from ifed.messages.enums import RoundKind, RoundState, TaskState
from services.aggregator.domain.access import AuditEntry, EnrolmentCode, Party
from services.aggregator.domain.aggregates import Aggregate, ContextPart, LedgerLine
from services.aggregator.domain.contribution import Contribution, ContributionRecord
from services.aggregator.domain.evaluation import EvaluationResult
from services.aggregator.domain.events import Delivery, DomainEvent, Webhook
from services.aggregator.domain.round import Round, Seat
from services.aggregator.domain.task import Membership, Task
from services.aggregator.runtime.cache import ProcessCache
from testing.factories import NOON
from tests.fakes_events import FakeEvents, FakeWebhooks


@dataclass
class Sent:
    """A contribution with its bytes, and the change of the context vector that took it away again."""

    entry: ContributionRecord
    body: bytes
    removed: int | None = None


@dataclass
class Rows:
    """Everything a fake store keeps."""

    tasks: dict[str, Task] = field(default_factory=dict)
    parties: dict[str, Party] = field(default_factory=dict)
    memberships: dict[tuple[str, str], Membership] = field(default_factory=dict)
    rounds: dict[tuple[str, int], Round] = field(default_factory=dict)
    claims: dict[tuple[str, int], datetime] = field(default_factory=dict)
    seats: dict[tuple[str, int, str], Seat] = field(default_factory=dict)
    bodies: dict[tuple[str, int, str, int], Sent] = field(default_factory=dict)
    context_claims: dict[str, datetime] = field(default_factory=dict)
    contexts: dict[tuple[str, int], tuple[Aggregate, bytes]] = field(default_factory=dict)
    versions: dict[tuple[str, int], tuple[Aggregate, bytes]] = field(default_factory=dict)
    enrolments: dict[str, EnrolmentCode] = field(default_factory=dict)
    events: list[DomainEvent] = field(default_factory=list)
    webhooks: dict[str, Webhook] = field(default_factory=dict)
    deliveries: dict[tuple[str, int], Delivery] = field(default_factory=dict)
    webhook_claims: dict[str, datetime] = field(default_factory=dict)
    audit: list[AuditEntry] = field(default_factory=list)
    moments: dict[tuple[str, int], bytes | None] = field(default_factory=dict)
    sketches: dict[str, tuple[str, list[float]]] = field(default_factory=dict)
    withdrawn: dict[tuple[str, int], datetime] = field(default_factory=dict)


class FakeTasks:
    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    async def add(self, task: Task) -> None:
        if task.name in self._rows.tasks:
            raise AlreadyExists(f"a task named {task.name!r} exists already")
        self._rows.tasks[task.name] = replace(task)

    async def get(self, name: str, *, for_update: bool = False) -> Task:
        if name not in self._rows.tasks:
            raise UnknownTask(f"there is no task named {name!r}")
        return replace(self._rows.tasks[name])

    async def save(self, task: Task) -> None:
        self._rows.tasks[task.name] = replace(task)

    async def delete(self, name: str) -> None:
        del self._rows.tasks[name]
        self._rows.sketches.pop(name, None)
        for kept in (
            self._rows.memberships, self._rows.rounds, self._rows.claims, self._rows.seats,
            self._rows.bodies, self._rows.contexts, self._rows.versions, self._rows.moments, self._rows.withdrawn,
        ):  # fmt: skip
            for key in [key for key in kept if key[0] == name]:
                del kept[key]  # type: ignore[attr-defined]  # every one of these is keyed by the task first

    async def page(self, after: str | None, limit: int) -> list[Task]:
        names = sorted(name for name in self._rows.tasks if name > (after or ""))
        return [replace(self._rows.tasks[name]) for name in names[:limit]]

    async def claim_context(self, now: datetime, until: datetime) -> Task | None:
        for name, task in self._rows.tasks.items():
            behind = task.version is not None and task.context_settled < task.context_changes
            if behind and self._rows.context_claims.get(name, now) <= now:
                self._rows.context_claims[name] = until
                return replace(task)
        return None

    async def release_context(self, name: str) -> None:
        self._rows.context_claims.pop(name, None)


class FakeParties:
    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    async def add(self, party: Party) -> None:
        if party.name in self._rows.parties:
            raise AlreadyExists(f"the name {party.name!r} is taken; a name is enrolled once")
        self._rows.parties[party.name] = replace(party)

    async def get(self, name: str, *, for_update: bool = False) -> Party:
        if name not in self._rows.parties:
            raise UnknownClient(f"nobody is enrolled as {name!r}")
        return replace(self._rows.parties[name])

    async def by_token(self, token_hash: str) -> Party | None:
        return next((replace(party) for party in self._rows.parties.values() if party.token_hash == token_hash), None)

    async def save(self, party: Party) -> None:
        self._rows.parties[party.name] = replace(party)

    async def saw(self, when: Mapping[str, datetime]) -> None:
        for name, at in when.items():
            self._rows.parties[name].last_seen_at = at

    async def page(self, after: str | None, limit: int) -> list[Party]:
        names = sorted(name for name in self._rows.parties if name > (after or ""))
        return [replace(self._rows.parties[name]) for name in names[:limit]]


class FakeMemberships:
    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    async def put(self, membership: Membership) -> None:
        before = self._rows.memberships.get((membership.task, membership.client), membership)
        self._rows.memberships[membership.task, membership.client] = replace(membership, joined_at=before.joined_at)

    async def find(self, task: str, client: str) -> Membership | None:
        return self._rows.memberships.get((task, client))

    async def of_task(self, task: str) -> list[Membership]:
        kept = (self._rows.memberships[key] for key in sorted(self._rows.memberships) if key[0] == task)
        return [member for member in kept if member.withdrawn_at is None]

    async def tasks_of(self, client: str) -> list[str]:
        return sorted(task for task, member in self._rows.memberships if member == client)

    async def remove(self, task: str, client: str | None = None) -> None:
        for key in [key for key in self._rows.memberships if key[0] == task and client in (None, key[1])]:
            del self._rows.memberships[key]


class FakeRounds:
    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    async def add(self, round_: Round, clients: Sequence[str]) -> None:
        if any(kept.task == round_.task and kept.live for kept in self._rows.rounds.values()):
            raise WrongState(f"task {round_.task!r} has a round going already")
        self._rows.rounds[round_.task, round_.number] = replace(round_)
        for client in clients:
            self._rows.seats[round_.task, round_.number, client] = Seat(client)

    async def get(self, task: str, number: int, *, for_update: bool = False) -> Round:
        if (task, number) not in self._rows.rounds:
            raise UnknownRound(f"task {task!r} has no round {number}")
        return replace(self._rows.rounds[task, number])

    async def newest(self, task: str, *, for_update: bool = False) -> Round | None:
        return max((replace(kept) for kept in self._rows.rounds.values() if kept.task == task), key=_number, default=None)

    async def save(self, round_: Round) -> None:
        self._rows.rounds[round_.task, round_.number] = replace(round_)

    async def page(self, task: str, after: int, limit: int) -> list[Round]:
        found = [replace(kept) for kept in self._rows.rounds.values() if kept.task == task and kept.number > after]
        return sorted(found, key=_number)[:limit]

    async def due(self, now: datetime) -> list[tuple[str, int]]:
        return [(kept.task, kept.number) for kept in self._rows.rounds.values() if kept.overdue(now)]

    async def claim(self, now: datetime, until: datetime) -> Round | None:
        for key, kept in self._rows.rounds.items():
            if kept.state is RoundState.AGGREGATING and self._rows.claims.get(key, now) <= now:
                self._rows.claims[key] = until
                return replace(kept)
        return None

    async def evaluations(self, task: str) -> list[tuple[int, EvaluationResult]]:
        measured = [(kept.version, kept.evaluation) for kept in await self.page(task, 0, 10_000) if kept.state is RoundState.CLOSED]
        told = [(version, measure) for version, measure in measured if version is not None and measure is not None]
        return [(version, measure) for version, measure in told if (task, version) not in self._rows.withdrawn]

    async def seat(self, task: str, number: int, client: str) -> Seat | None:
        return self._rows.seats.get((task, number, client))

    async def seats(self, task: str, numbers: Iterable[int]) -> dict[int, list[Seat]]:
        return {
            number: [self._rows.seats[key] for key in sorted(self._rows.seats) if key[:2] == (task, number)] for number in numbers
        }

    async def missing(self, task: str, number: int) -> list[str]:
        return [seat.client for seat in (await self.seats(task, [number]))[number] if seat.entry is None]

    async def unseat(self, task: str, number: int, client: str) -> None:
        del self._rows.seats[task, number, client]

    async def record(self, round_: Round, contribution: Contribution) -> None:
        key = (round_.task, round_.number, contribution.entry.client)
        if (*key, 0) in self._rows.bodies:
            raise AlreadyContributed(f"{contribution.entry.client} contributed to {round_} already")
        self._rows.seats[key] = Seat(contribution.entry.client, contribution.entry)
        self._rows.bodies[*key, 0] = Sent(contribution.entry, contribution.body)

    async def ledger(self, task: str, after: tuple[int, str, int], limit: int) -> list[LedgerLine]:
        lines = []
        for name, number, client, change in sorted(self._rows.bodies):
            sent, round_ = self._rows.bodies[name, number, client, change], self._rows.rounds[name, number]
            if name == task and (number, client, change) > after:
                lines.append(LedgerLine(number, round_.kind, round_.state, sent.entry, change, sent.removed))
        return lines[:limit]

    async def bodies(self, task: str, number: int) -> AsyncIterator[tuple[int, bytes]]:
        for key in sorted(self._rows.bodies):
            if key[:2] == (task, number):
                yield self._rows.bodies[key].entry.weight, self._rows.bodies[key].body


class FakeParts:
    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    async def add(self, task: str, number: int, change: int, contribution: Contribution) -> None:
        self._rows.bodies[task, number, contribution.entry.client, change] = Sent(contribution.entry, contribution.body)

    def _counting(self, task: str, client: str, *, closed: bool) -> list[Sent]:
        found = []
        for (name, number, sender, _), sent in self._rows.bodies.items():
            round_ = self._rows.rounds[name, number]
            counts = round_.kind is RoundKind.CONTEXT and (round_.state is RoundState.CLOSED or not closed)
            if (name, sender, sent.removed) == (task, client, None) and counts:
                found.append(sent)
        return found

    async def find(self, task: str, client: str, digest: str) -> ContributionRecord | None:
        sent = self._counting(task, client, closed=True)
        return next((one.entry for one in sent if one.entry.digest == digest), None)

    async def holds(self, task: str, client: str) -> bool:
        return bool(self._counting(task, client, closed=True))

    async def withdraw(self, task: str, client: str, change: int) -> int:
        taken = self._counting(task, client, closed=False)
        for one in taken:
            one.removed = change
        return len(taken)

    async def bodies(self, task: str, number: int, changes: int) -> AsyncIterator[ContextPart]:
        for key in sorted(self._rows.bodies):
            sent = self._rows.bodies[key]
            if key[:2] == (task, number) and key[3] <= changes and (sent.removed is None or sent.removed > changes):
                yield ContextPart(sent.entry.client, sent.entry.digest, sent.entry.weight, sent.body)


class FakeAggregates:
    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    async def add_context(self, aggregate: Aggregate, body: bytes) -> None:
        self._rows.contexts[aggregate.task, aggregate.version] = (aggregate, body)

    async def add_coefficients(self, aggregate: Aggregate, body: bytes, moments: bytes | None = None) -> None:
        self._rows.versions[aggregate.task, aggregate.version] = (aggregate, body)
        self._rows.moments[aggregate.task, aggregate.version] = moments

    async def newest_version(self, task: str) -> int | None:
        return max((version for name, version in self._rows.versions if name == task), default=None)

    async def moments(self, task: str, version: int) -> bytes | None:
        return self._rows.moments.get((task, version))

    async def withdraw_after(self, task: str, version: int, at: datetime) -> None:
        for name, later in self._rows.versions:
            if name == task and later > version:
                self._rows.withdrawn.setdefault((task, later), at)
        self._rows.withdrawn.pop((task, version), None)

    async def context(self, task: str, version: int | None = None) -> Aggregate:
        if version is not None:
            return _known(self._rows.contexts, task, version)[0]
        found = await self.contexts(task, 0, 10_000)
        if not found:
            raise NothingYet(f"task {task!r} has no context vector before its first round closes")
        return max(found, key=lambda head: head.version)

    async def contexts(self, task: str, after: int, limit: int) -> list[Aggregate]:
        found = [head for (name, version), (head, _) in self._rows.contexts.items() if name == task and version > after]
        return sorted(found, key=lambda head: head.version)[:limit]

    async def context_body(self, task: str, version: int) -> bytes:
        return _known(self._rows.contexts, task, version)[1]

    async def coefficients(self, task: str, version: int) -> Aggregate:
        return _known(self._rows.versions, task, version)[0]

    async def coefficients_body(self, task: str, version: int) -> bytes:
        return _known(self._rows.versions, task, version)[1]


class FakeEnrolments:
    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    async def add(self, code: EnrolmentCode) -> None:
        self._rows.enrolments[code.code_hash] = replace(code)

    async def take(self, code_hash: str, now: datetime) -> EnrolmentCode | None:
        code = self._rows.enrolments.get(code_hash)
        if code is None or code.used_at is not None or code.expires_at <= now:
            return None
        code.used_at = now
        return replace(code)


class FakeAudit:
    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    async def add(self, entry: AuditEntry) -> None:
        self._rows.audit.append(replace(entry, number=len(self._rows.audit) + 1))

    async def page(self, after: int, limit: int) -> list[AuditEntry]:
        return self._rows.audit[after : after + limit]


class FakeSketches:
    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    async def put(self, task: str, key: str, numbers: Sequence[float]) -> None:
        self._rows.sketches[task] = (key, list(numbers))

    async def find(self, task: str) -> tuple[str, list[float]] | None:
        return self._rows.sketches.get(task)

    async def nearest(self, task: str, key: str, numbers: Sequence[float], limit: int) -> list[tuple[str, float]]:
        found = [
            (name, sum(one * other for one, other in zip(kept, numbers, strict=True)))
            for name, (its_key, kept) in self._rows.sketches.items()
            if its_key == key and name != task
        ]
        served = [one for one in found if self._rows.tasks[one[0]].state is TaskState.FINISHED]
        served = [one for one in served if self._rows.tasks[one[0]].served is not None]
        return sorted(served, key=lambda one: (-one[1], one[0]))[:limit]


def _known(kept: dict[tuple[str, int], tuple[Aggregate, bytes]], task: str, version: int) -> tuple[Aggregate, bytes]:
    if (task, version) not in kept:
        raise UnknownVersion(f"task {task!r} has no version {version}")
    return kept[task, version]


def _number(round_: Round) -> int:
    return round_.number


class FakeWork:
    """A transaction on a copy of the rows."""

    def __init__(self, store: FakeStore) -> None:
        self._store, self._rows = store, copy.deepcopy(store.rows)
        self.tasks, self.parties = FakeTasks(self._rows), FakeParties(self._rows)
        self.memberships, self.rounds = FakeMemberships(self._rows), FakeRounds(self._rows)
        self.aggregates, self.sketches = FakeAggregates(self._rows), FakeSketches(self._rows)
        self.events, self.webhooks = FakeEvents(self._rows), FakeWebhooks(self._rows)
        self.parts = FakeParts(self._rows)
        self.enrolments, self.audit = FakeEnrolments(self._rows), FakeAudit(self._rows)

    async def commit(self) -> None:
        self._store.rows = self._rows


class FakeStore:
    """The truth, in memory; one writer at a time."""

    def __init__(self) -> None:
        self.rows = Rows()
        self._writing = asyncio.Lock()

    @asynccontextmanager
    async def unit_of_work(self) -> AsyncIterator[FakeWork]:
        async with self._writing:
            yield FakeWork(self)

    @asynccontextmanager
    async def read_only(self) -> AsyncIterator[FakeWork]:
        yield FakeWork(self)

    async def state(self) -> str:
        return "ok"

    async def close(self) -> None:
        """Nothing to close."""


class SwitchableCache(ProcessCache):
    """A cache that a test can switch off: then every read misses, and writes and notifications are lost.

    Attributes:
        published: the topics that were published, also while it was off.
    """

    def __init__(self) -> None:
        super().__init__()
        self.down = False
        self.published: list[str] = []

    async def get(self, key: str) -> bytes | None:
        return None if self.down else await super().get(key)

    async def put(self, key: str, body: bytes) -> None:
        if not self.down:
            await super().put(key, body)

    async def publish(self, topic: str) -> None:
        self.published.append(topic)
        if not self.down:
            await super().publish(topic)

    async def state(self) -> str:
        return "degraded: switched off by a test" if self.down else await super().state()


class FakeClock:
    """A clock that stands still until a test moves it."""

    def __init__(self, now: datetime = NOON) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
