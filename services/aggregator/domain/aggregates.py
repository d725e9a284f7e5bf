"""Stored aggregates, and the ledger of what they were made from."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ifed.messages.enums import HeadQuestion, HeadState, RoundKind, RoundState
from services.aggregator.domain.contribution import ContributionRecord


@dataclass(frozen=True, slots=True)
class Aggregate:
    """A version of a context vector or of the coefficients, without its body.

    Attributes:
        digest: sha256 of the body, which is stored as it travels.
        round: the round that made it.
        weight: the number of examples behind it.
        calibrated: of coefficients, the calibration rounds behind it in a row; 0 for a context vector.
        context: of coefficients, the version of the context vector they were made with.
        changes: of a context vector, the number of additions and withdrawals it reflects.
        head: of coefficients, the label head stored with them.
        solve: of coefficients with a label head, the first round of the solution that it is.
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
    head: HeadState = HeadState.NONE
    solve: int | None = None


@dataclass(frozen=True, slots=True)
class HeadRevision:
    """A label head made anew from the answers of those who have not withdrawn, without its body.

    Attributes:
        solve: the first round of the solution.
        changes: the number of additions and withdrawals that it reflects.
        weight: the number of examples behind it.
        digest: sha256 of the body.
    """

    task: str
    solve: int
    changes: int
    created_at: datetime
    weight: int
    digest: str


@dataclass(frozen=True, slots=True)
class HeadAnswers:
    """A closed head round of a solve: what was asked, and which clients answered.

    Attributes:
        query: the body that clients received; see `ifed.messages.bodies.HeadQuery`.
    """

    number: int
    question: HeadQuestion
    query: bytes
    clients: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LedgerLine:
    """A contribution and the round it was for.

    Attributes:
        change: the change of the context vector it came with; 0 for a contribution to the round itself.
        removed: the change with which it was withdrawn.
    """

    round: int
    kind: RoundKind
    state: RoundState
    entry: ContributionRecord
    change: int = 0
    removed: int | None = None


@dataclass(frozen=True, slots=True)
class ContextPart:
    """What one client sent for a context vector at one time. A client that adds demonstrations later has several."""

    client: str
    digest: str
    weight: int
    body: bytes
