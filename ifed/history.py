"""The JSON messages about what a task went through: its ledger, proofs of aggregates, ways back and out. Knows no web framework."""

from __future__ import annotations

from datetime import datetime
from typing import Self

from pydantic import Field, model_validator

from ifed.contracts import Evaluation
from ifed.states import RoundKind, RoundState
from ifed.tasks import Message, Name


class Rollback(Message):
    """Which version a task goes back to."""

    version: int = Field(ge=0, description="a version of the coefficients; those after it are no longer served or built upon")


class LedgerEntry(Message):
    """One contribution that was answered 2xx. What it holds stays on the aggregator."""

    round: int
    kind: RoundKind
    state: RoundState = Field(description="of its round; what a failed or cancelled round gathered counts for nothing")
    client: Name
    change: int = Field(0, description="of the context vector: the addition it came with; 0 for what came in the round itself")
    withdrawn: bool = Field(False, description="it counts no more in the context vector, since its client withdrew")
    digest: str = Field(description="sha256 of the body that was sent")
    received_at: datetime
    examples: int
    bytes: int


class Replay(Message):
    """A closed round summed up again from the ledger, held against what is stored."""

    round: int
    kind: RoundKind
    contributions: int
    version: int | None = Field(
        None, description="of what the round made: the context vector or the coefficients; none by an evaluation"
    )
    stored: str | None = Field(None, description="sha256 of the aggregate that is kept and served")
    replayed: str | None = Field(None, description="sha256 of the aggregate summed up again")
    altered: list[Name] = Field(description="clients whose stored contribution is no longer what they sent")
    proven: bool = Field(
        description="every contribution is what was sent, and the aggregate and its measure come out as they are kept"
    )


class ContextInfo(Message):
    """One version of a task's context vector."""

    version: int = Field(description="1 is what the context round made")
    digest: str = Field(description="sha256 of the body of GET …/context?version=")
    created_at: datetime
    examples: int = Field(description="demonstrations behind it")
    changes: int = Field(description="additions and withdrawals that it reflects")


class Withdrawal(Message):
    """That a client takes part in a task no more."""

    task: Name
    client: Name
    withdrawn_at: datetime


class Start(Message):
    """How a task begins."""

    warm_start: bool = Field(False, description="begin from the coefficients of the most similar finished task, where there is one")
    warm_start_from: Name | None = Field(None, description="begin from the coefficients of this finished task")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.warm_start and self.warm_start_from is not None:
            raise ValueError("warm_start takes the most similar task, warm_start_from the one it names; set one of them")
        return self


class MatchRequest(Message):
    """Which tasks are like this one."""

    task: Name = Field(description="its first round has closed, so that it has a context vector")
    limit: int = Field(5, ge=1, le=100)


class Match(Message):
    """A finished task whose context vector is like the one asked for, on the same model, layers and groups."""

    task: Name
    similarity: float = Field(description="estimate of the cosine of the angle between the context vectors, from -1 to 1")
    version: int = Field(description="the coefficients it serves")
    labels: list[str]
    evaluation: Evaluation | None = None


class Matches(Message):
    """Finished tasks, the most similar first."""

    items: list[Match]
