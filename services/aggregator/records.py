"""What is kept besides rounds and tasks: parties, members, and the aggregates. Plain values: knows no database and no HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from ifed.events import DeliveryState, EventKind
from ifed.states import Role, RoundKind, RoundState
from ifed.tasks import TaskSpec
from services.aggregator.contribution import Entry
from services.aggregator.plan import Task

FederatedTask = Task[TaskSpec]


@dataclass(slots=True)
class Party:
    """Who a bearer token speaks for; only the token's sha256 is kept."""

    name: str
    role: Role
    token_hash: str
    enrolled_at: datetime
    revoked_at: datetime | None = None
    last_seen_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Membership:
    """A client's part in a task: how many examples by label it has, no text; `withdrawn_at` once it takes part no more."""

    task: str
    client: str
    joined_at: datetime
    label_counts: Mapping[str, int]
    holdout: int
    withdrawn_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class LedgerLine:
    """A contribution and the round it was for.

    Attributes:
        change: of the context vector, that it came with after its round had closed; 0 for what came in the round.
        removed: the change it was withdrawn with.
    """

    round: int
    kind: RoundKind
    state: RoundState
    entry: Entry
    change: int = 0
    removed: int | None = None


@dataclass(frozen=True, slots=True)
class Aggregate:
    """A stored aggregate without its bytes.

    Attributes:
        version: of the coefficients, or the revision of the context vector.
        digest: sha256 of the body, which is kept exactly as it travels.
        round: the round that made it.
        weight: examples behind it.
        calibrated: calibration rounds behind it, one after the other; 0 for a context vector.
        context: of coefficients, the context vector they were made with.
        changes: of a context vector, the additions and withdrawals it reflects.
    """

    task: str
    version: int
    digest: str
    created_at: datetime
    round: int
    weight: int
    calibrated: int = 0
    context: int = 1
    changes: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a context vector: what one client sent of it at one time."""

    client: str
    digest: str
    weight: int
    body: bytes


@dataclass(slots=True)
class EnrolmentCode:
    """Leave for one party to enrol itself once, for a while; only the code's sha256 is kept."""

    code_hash: str
    name: str
    role: Role
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One line of the audit: who asked for what, before it was done.

    Attributes:
        action: method and route, such as `POST /v1/tasks/{task}/start`.
        target: the path that was asked for.
        number: counts the lines; None until it is kept.
    """

    at: datetime
    actor: str
    action: str
    target: str
    request_id: str | None
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that happened to a task or a round.

    Attributes:
        version: the coefficients that a round made, that are served from now on or no more, or the context vector that was revised.
        number: counts what happened, in the order of its commits; None until it is kept.
    """

    kind: EventKind
    at: datetime
    task: str
    round: int | None = None
    round_kind: RoundKind | None = None
    version: int | None = None
    reason: str | None = None
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Webhook:
    """A receiver of what happens. Its secret is kept as it is, since it signs.

    Attributes:
        kinds: what it is told; None is everything.
        task: the task it is told of; None is every task.
    """

    name: str
    url: str = field(repr=False)
    secret: str = field(repr=False)
    created_at: datetime
    kinds: tuple[EventKind, ...] | None = None
    task: str | None = None

    def wants(self, happening: Happening) -> bool:
        return (self.kinds is None or happening.kind in self.kinds) and self.task in (None, happening.task)


@dataclass(frozen=True, slots=True)
class Delivery:
    """Something that happened, on its way to one webhook."""

    happening: Happening
    state: DeliveryState = DeliveryState.PENDING
    attempts: int = 0
    next_at: datetime | None = None
    status: int | None = None
    error: str | None = None
    delivered_at: datetime | None = None
