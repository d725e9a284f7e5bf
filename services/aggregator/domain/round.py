"""The states of a round: who may contribute, and when it is complete, overdue or failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from ifed.errors import AlreadyContributed, RoundClosed, StaleUpdate, WrongState
from ifed.messages.enums import HeadQuestion, RoundKind, RoundState
from services.aggregator.domain.contribution import Contribution, ContributionRecord, ContributionSchema
from services.aggregator.domain.evaluation import EvaluationResult

NAMES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Seat:
    """A client that a round waits for.

    Attributes:
        entry: its contribution; None until it has contributed.
    """

    client: str
    entry: ContributionRecord | None = None

    def repeats(self, contribution: Contribution) -> ContributionRecord | None:
        """Return the record of the same contribution when the client has sent it before, so that sending again is idempotent.

        Raises:
            AlreadyContributed: the client has sent another contribution.
        """
        if self.entry is not None and self.entry.digest != contribution.entry.digest:
            raise AlreadyContributed(
                f"{self.client} already contributed {self.entry.digest[:12]}… to this round; it now sent "
                f"{contribution.entry.digest[:12]}…, and a contribution cannot be replaced"
            )
        return self.entry


@dataclass(slots=True)
class Round:
    """One collection of contributions: `open -> aggregating -> closed`, or `failed`, or `cancelled`.

    Attributes:
        number: counts the rounds of the task from 1, failed and cancelled ones included.
        expected: the number of participants.
        required: the number of contributions needed at the deadline.
        version: the coefficients it starts from and evaluates; None in a context round.
        produced: the coefficients it made.
        attempt: counts the attempts at the same step from 1; one more after each failure that is retried.
        context: the version of the context vector it works with; None in a context round.
        question: of a head round, what it asks.
        solve: of a head round, the number of the first round of its solution.
    """

    task: str
    number: int
    kind: RoundKind
    opened_at: datetime
    deadline: datetime
    expected: int
    required: int
    version: int | None = None
    state: RoundState = RoundState.OPEN
    contributed: int = 0
    closed_at: datetime | None = None
    produced: int | None = None
    reason: str | None = None
    evaluation: EvaluationResult | None = None
    attempt: int = 1
    context: int | None = None
    question: HeadQuestion | None = None
    solve: int | None = None

    def __str__(self) -> str:
        return f"round {self.number} of task {self.task!r}"

    @property
    def live(self) -> bool:
        """Whether the round is open or being aggregated."""
        return self.state in (RoundState.OPEN, RoundState.AGGREGATING)

    def accept(self, contribution: Contribution, form: ContributionSchema, now: datetime) -> None:
        """Count a contribution that was not sent before; the last expected one ends the collection.

        Raises:
            RoundClosed: the round is not open, or its deadline has passed.
            StaleUpdate: it starts from another version than the round.
            IFedError: whatever `Contribution.check` refuses.
        """
        if self.state is not RoundState.OPEN:
            raise RoundClosed(f"{self} is {self.state}")
        if now >= self.deadline:
            raise RoundClosed(f"{self} took contributions until {self.deadline:%Y-%m-%d %H:%M:%S} UTC")
        contribution.check(self.kind, form)
        if self.kind is not RoundKind.CONTEXT and contribution.version != self.version:
            raise StaleUpdate(f"{self} starts from version {self.version}, this update from version {contribution.version}")
        self.contributed += 1
        self._end_when_complete()

    def excuse(self, now: datetime, *, contributed: bool = False) -> RoundState:
        """Expect one client less, which was revoked or withdrew, and return the state that follows.

        Args:
            contributed: the client has contributed, and its contribution no longer counts.

        Raises:
            WrongState: the round is not open.
        """
        self._must_be_open("wait for fewer clients")
        self.expected -= 1
        self.contributed -= contributed
        self.required = max(1, min(self.required, self.expected))
        if self.expected == 0:
            self.fail("every client it waited for was revoked or withdrew", now)
        self._end_when_complete()
        return self.state

    def _end_when_complete(self) -> None:
        if self.state is RoundState.OPEN and self.contributed >= max(self.expected, 1):
            self.state = RoundState.AGGREGATING

    def overdue(self, now: datetime) -> bool:
        """Return whether the round is open past its deadline."""
        return self.state is RoundState.OPEN and now >= self.deadline

    def expire(self, now: datetime, missing: Sequence[str]) -> None:
        """Aggregate at the deadline if there is a quorum, else fail.

        Args:
            missing: the clients that have not contributed, for the reason of a failure.

        Raises:
            WrongState: the round is not overdue.
        """
        if not self.overdue(now):
            raise WrongState(f"{self} is {self.state} and its deadline is {self.deadline:%Y-%m-%d %H:%M:%S} UTC")
        if self.contributed >= self.required:
            self.state = RoundState.AGGREGATING
        else:
            self.fail(f"{self.contributed} of {self.required} needed contributions came; missing: {join_names(missing)}", now)

    def close_now(self) -> None:
        """Aggregate before the deadline, with or without a quorum, because an admin said so.

        Raises:
            WrongState: the round is not open, or has no contributions.
        """
        self._must_be_open("be closed")
        if self.contributed == 0:
            raise WrongState(f"{self} has no contributions to aggregate; cancel it instead")
        self.state = RoundState.AGGREGATING

    def extend(self, seconds: float) -> None:
        """Move the deadline.

        Raises:
            WrongState: the round is not open.
        """
        self._must_be_open("be extended")
        self.deadline += timedelta(seconds=seconds)

    def cancel(self, now: datetime) -> None:
        """Cancel the round. Its contributions stay in the ledger and are not aggregated.

        Raises:
            WrongState: the round is not open.
        """
        self._must_be_open("be cancelled")
        self.state, self.closed_at, self.reason = RoundState.CANCELLED, now, "cancelled by an admin"

    def fail(self, reason: str, now: datetime) -> None:
        """End the round without an aggregate."""
        self.state, self.closed_at, self.reason = RoundState.FAILED, now, reason

    def close(self, now: datetime, *, produced: int | None, evaluation: EvaluationResult | None) -> None:
        """End the round with its aggregate.

        Args:
            produced: the version of the coefficients it made.
            evaluation: of the version it started from.

        Raises:
            WrongState: the round is not being aggregated.
        """
        if self.state is not RoundState.AGGREGATING:
            raise WrongState(f"{self} is {self.state}; only a round that is aggregating can close")
        self.state, self.closed_at, self.produced, self.evaluation = RoundState.CLOSED, now, produced, evaluation

    def _must_be_open(self, verb: str) -> None:
        if self.state is not RoundState.OPEN:
            raise WrongState(f"{self} is {self.state} and can no longer {verb}")


def join_names(clients: Sequence[str]) -> str:
    """Join the names with commas for an error message; after the first `NAMES_SHOWN`, add "and N more"."""
    more = len(clients) - NAMES_SHOWN
    return ", ".join(clients[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
