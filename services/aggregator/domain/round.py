"""Rounds: who may contribute, and when a round is complete. Knows no clock, no database and no HTTP; time is passed in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from ifed.errors import AlreadyContributed, RoundClosed, StaleUpdate, WrongState
from ifed.messages.enums import RoundKind, RoundState
from services.aggregator.domain.contribution import Contribution, ContributionRecord, ContributionSchema
from services.aggregator.domain.evaluation import EvaluationResult

NAMES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Seat:
    """A client's place in a round that waits for it; `entry` once it has contributed."""

    client: str
    entry: ContributionRecord | None = None

    def repeats(self, contribution: Contribution) -> ContributionRecord | None:
        """The entry of the same contribution sent before, so that sending again is the same answer.

        Raises:
            AlreadyContributed: this client sent something else.
        """
        if self.entry is not None and self.entry.digest != contribution.entry.digest:
            raise AlreadyContributed(
                f"{self.client} already contributed {self.entry.digest[:12]}… to this round; what it sent now is "
                f"{contribution.entry.digest[:12]}…, and a contribution does not change"
            )
        return self.entry


@dataclass(slots=True)
class Round:
    """One gathering of contributions: `open -> aggregating -> closed`, or `failed`, or `cancelled`.

    Attributes:
        number: counts the rounds of the task from 1, failed and cancelled ones too.
        expected: clients that have a seat.
        required: contributions needed at the deadline.
        version: the coefficients it starts from and evaluates; None in a context round.
        produced: the coefficients it made.
        attempt: counts the rounds that stood for the same step, failed ones before it, from 1.
        context: the version of the context vector it works with; None in a context round.
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

    def __str__(self) -> str:
        return f"round {self.number} of task {self.task!r}"

    @property
    def live(self) -> bool:
        return self.state in (RoundState.OPEN, RoundState.AGGREGATING)

    def accept(self, contribution: Contribution, form: ContributionSchema, now: datetime) -> None:
        """Count a contribution that was not sent before; the last one expected ends the gathering.

        Raises:
            RoundClosed: the round no longer gathers, or its deadline has passed.
            StaleUpdate: computed from another version than the round's.
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
        """Count one client less, which was revoked or withdrew; the state this leads to.

        Args:
            contributed: it had contributed, and what it sent counts no more.
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
        return self.state is RoundState.OPEN and now >= self.deadline

    def expire(self, now: datetime, missing: Sequence[str]) -> None:
        """At the deadline: go on with those who came if they are a quorum, else fail and name the missing."""
        if not self.overdue(now):
            raise WrongState(f"{self} is {self.state} and its deadline is {self.deadline:%Y-%m-%d %H:%M:%S} UTC")
        if self.contributed >= self.required:
            self.state = RoundState.AGGREGATING
        else:
            self.fail(f"{self.contributed} of {self.required} needed contributions came; missing: {named(missing)}", now)

    def close_now(self) -> None:
        """End the gathering before its time with those who came; an admin's word stands above the quorum."""
        self._must_be_open("be closed")
        if self.contributed == 0:
            raise WrongState(f"{self} has no contributions to aggregate; cancel it instead")
        self.state = RoundState.AGGREGATING

    def extend(self, seconds: float) -> None:
        self._must_be_open("be extended")
        self.deadline += timedelta(seconds=seconds)

    def cancel(self, now: datetime) -> None:
        """Give the round up; what came stays in the ledger and counts for nothing."""
        self._must_be_open("be cancelled")
        self.state, self.closed_at, self.reason = RoundState.CANCELLED, now, "cancelled by an admin"

    def fail(self, reason: str, now: datetime) -> None:
        self.state, self.closed_at, self.reason = RoundState.FAILED, now, reason

    def close(self, now: datetime, *, produced: int | None, evaluation: EvaluationResult | None) -> None:
        """Keep what the aggregate gave."""
        if self.state is not RoundState.AGGREGATING:
            raise WrongState(f"{self} is {self.state}; only a round that is aggregating can close")
        self.state, self.closed_at, self.produced, self.evaluation = RoundState.CLOSED, now, produced, evaluation

    def _must_be_open(self, verb: str) -> None:
        if self.state is not RoundState.OPEN:
            raise WrongState(f"{self} is {self.state} and can no longer {verb}")


def named(clients: Sequence[str]) -> str:
    """The names in words, cut off after some, since a round may wait for thousands."""
    more = len(clients) - NAMES_SHOWN
    return ", ".join(clients[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
