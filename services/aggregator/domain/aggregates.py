"""What is kept besides rounds and tasks: parties, members, and the aggregates. Plain values: knows no database and no HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ifed.messages.enums import RoundKind, RoundState
from services.aggregator.domain.contribution import ContributionRecord


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
    entry: ContributionRecord
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
class ContextPart:
    """A piece of a context vector: what one client sent of it at one time."""

    client: str
    digest: str
    weight: int
    body: bytes
