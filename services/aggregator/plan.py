"""What a task does next: its states, the order of its rounds, early stop, and which version it serves. Knows no database and no HTTP."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, Literal, Protocol, TypeVar

from ifed.errors import WrongState
from ifed.states import AssignmentKind, RoundKind, RoundState, TaskState
from services.aggregator.aggregation import Measure
from services.aggregator.domain import Round, Seat


class Policy(Protocol):
    """The part of `ifed.tasks.Policy` that rounds follow."""

    @property
    def rounds(self) -> int: ...
    @property
    def retries(self) -> int: ...
    @property
    def clients_expected(self) -> int: ...
    @property
    def quorum(self) -> int | None: ...
    @property
    def quorum_fraction(self) -> float: ...
    @property
    def deadline_seconds(self) -> float: ...
    @property
    def patience(self) -> int | None: ...
    @property
    def serve(self) -> Literal["best", "latest"]: ...


class Spec(Protocol):
    """The part of `ifed.tasks.TaskSpec` that a task's states follow."""

    @property
    def name(self) -> str: ...
    @property
    def policy(self) -> Policy: ...


SpecT = TypeVar("SpecT", bound=Spec)
NEAREST = "*"  # no task can have this name
Evaluated = Sequence[tuple[int, Measure]]


@dataclass(slots=True)
class Task(Generic[SpecT]):
    """A task and where it stands.

    Attributes:
        spec: what it is; holds the model's identity from the moment the first client joined.
        version: the newest coefficients.
        served: the version that the adapter endpoint gives.
        reason: why it failed, paused by itself, or stopped early.
        calibrated: calibration rounds behind `version`, one after the other.
        warm_start: the task whose coefficients version 0 is, or NEAREST until its context vector says which; None starts cold.
        context_changes: counts additions to and withdrawals from what the context vector is made of.
        context_settled: those of them that the newest context vector reflects, or could not.
    """

    spec: SpecT
    created_at: datetime
    state: TaskState = TaskState.DRAFT
    version: int | None = None
    served: int | None = None
    reason: str | None = None
    calibrated: int = 0
    warm_start: str | None = None
    context_changes: int = 0
    context_settled: int = 0

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def ended(self) -> bool:
        return self.state in (TaskState.FINISHED, TaskState.FAILED)

    def start(self) -> None:
        """Begin, or try the failed round again."""
        self._move("start", TaskState.RUNNING, TaskState.DRAFT, TaskState.FAILED)

    def pause(self) -> None:
        """Give out no more work; an open round still takes what comes, until its deadline."""
        self._move("pause", TaskState.PAUSED, TaskState.RUNNING)

    def resume(self) -> None:
        self._move("resume", TaskState.RUNNING, TaskState.PAUSED)

    def must_be_draft(self, verb: str) -> None:
        self._must_be(verb, TaskState.DRAFT)

    def must_not_be(self, verb: str, forbidden: TaskState) -> None:
        self._must_be(verb, *(state for state in TaskState if state is not forbidden))

    def fail(self, reason: str) -> None:
        self.state, self.reason = TaskState.FAILED, reason

    def hold(self, reason: str) -> None:
        """Pause for a reason of the service's own; `resume` goes on."""
        if self.state is TaskState.RUNNING:
            self.state, self.reason = TaskState.PAUSED, reason

    def finish(self, reason: str | None) -> None:
        self.state, self.reason = TaskState.FINISHED, reason

    def roll_back(self, version: int, calibrated: int) -> None:
        """Serve `version` and go on from it; a task that runs pauses, one that failed waits to be resumed."""
        self.must_not_be("be rolled back", TaskState.DRAFT)
        self.version, self.served, self.calibrated = version, version, calibrated
        self.reason = f"rolled back to version {version}"
        if self.state is not TaskState.FINISHED:
            self.state = TaskState.PAUSED

    def _move(self, verb: str, to: TaskState, *froms: TaskState) -> None:
        self._must_be(verb, *froms)
        self.state, self.reason = to, None

    def _must_be(self, verb: str, *states: TaskState) -> None:
        if self.state not in states:
            raise WrongState(f"task {self.name!r} is {self.state}; it can {verb} only while it is {' or '.join(states)}")


@dataclass(frozen=True, slots=True)
class Step:
    """The round a task needs next."""

    kind: RoundKind
    version: int | None = None


def next_step(task: Task[SpecT], newest: Round | None, evaluations: Evaluated) -> Step | None:
    """The next round: context, then calibration rounds until they are all done or bring nothing, then an evaluation; or None.

    A failed or cancelled round changed no version, so the step it stood for comes again.
    """
    if task.version is None:
        return Step(RoundKind.CONTEXT)
    evaluated = newest is not None and newest.kind is RoundKind.EVALUATION and newest.state is RoundState.CLOSED
    if newest is not None and evaluated and newest.version == task.version:
        return None
    if task.calibrated < task.spec.policy.rounds and not stalled(task.spec.policy, evaluations):
        return Step(RoundKind.CALIBRATION, task.version)
    return Step(RoundKind.EVALUATION, task.version)


def stalled(policy: Policy, evaluations: Evaluated) -> bool:
    """Whether the accuracy has not risen above its best for `patience` evaluations."""
    if policy.patience is None or not evaluations:
        return False
    accuracies = [measure.accuracy for _, measure in evaluations]
    return len(accuracies) - 1 - accuracies.index(max(accuracies)) >= policy.patience


def early_end(task: Task[SpecT]) -> str | None:
    """Why a task that is through its plan made fewer versions than the plan has rounds; None when it did not."""
    policy = task.spec.policy
    if task.version is None or task.calibrated >= policy.rounds:
        return None
    return f"stopped early after {task.calibrated} of {policy.rounds} rounds: the accuracy had not risen for {policy.patience} in a row"


def quorum_of(expected: int, count: int | None, fraction: float) -> int:
    """Contributions a round of `expected` clients needs at its deadline.

    Without `count` and without `fraction`, every client. Otherwise the larger of `count` and `fraction × expected` rounded up, and
    at least one: `quorum_of(10, 3, 0.25) == 3`, `quorum_of(10, None, 0.25) == 3`, `quorum_of(10, None, 0.0) == 10`.
    """
    if count is None and fraction == 0.0:
        return max(expected, 1)
    return max(count or 1, math.ceil(round(fraction * expected, 9)))


def clients_needed(policy: Policy, newest: Round | None) -> int:
    """Members a task needs before a round opens: never fewer than its quorum, and those it expects before the first one."""
    return max(policy.clients_expected if newest is None else 1, policy.quorum or 1)


def attempt_after(task: Task[SpecT], newest: Round | None) -> int:
    """The next round's attempt: one more after a failure that is retried, and 1 after all else, an admin's new start too."""
    if newest is None or newest.state is not RoundState.FAILED or newest.attempt > task.spec.policy.retries:
        return 1
    return newest.attempt + 1


def open_round(
    task: Task[SpecT], step: Step, number: int, members: int, now: datetime, *, attempt: int = 1, context: int | None = None
) -> Round:
    """A round that waits for `members` clients and works with context vector `context`."""
    policy = task.spec.policy
    return Round(
        task=task.name,
        number=number,
        kind=step.kind,
        version=step.version,
        opened_at=now,
        deadline=now + timedelta(seconds=policy.deadline_seconds),
        expected=members,
        required=quorum_of(members, policy.quorum, policy.quorum_fraction),
        attempt=attempt,
        context=context,
    )


def promoted(task: Task[SpecT], evaluations: Evaluated) -> int | None:
    """The version to serve.

    By `best`, the evaluated version of the highest accuracy; between equals the newer, which more rounds stand behind. By `latest`,
    the newest version. A finished task that no client could evaluate serves its newest version either way.
    """
    unmeasured = task.state is TaskState.FINISHED and not evaluations
    if task.spec.policy.serve == "latest" or unmeasured:
        return task.version
    return max(evaluations, key=lambda item: (item[1].accuracy, item[0]), default=(None, None))[0]


def assigned(task: Task[SpecT], *, joined: bool, newest: Round | None, seat: Seat | None, now: datetime) -> AssignmentKind:
    """What one client should do now; `may_add` says what may come in the place of waiting."""
    if task.state is TaskState.FAILED:
        return AssignmentKind.DONE
    if not joined:
        return AssignmentKind.JOIN
    if task.state is TaskState.FINISHED:
        return AssignmentKind.DONE
    idle = newest is None or newest.state is not RoundState.OPEN or newest.overdue(now)
    if newest is None or idle or task.state is not TaskState.RUNNING or seat is None or seat.entry is not None:
        return AssignmentKind.WAIT
    return AssignmentKind(newest.kind.value)


def may_add(task: Task[SpecT], kind: AssignmentKind) -> bool:
    """Whether a client that has no part in the context vector could bring one; a round comes first, since it has a deadline."""
    idle = kind is AssignmentKind.WAIT and task.state is TaskState.RUNNING
    over = kind is AssignmentKind.DONE and task.state is TaskState.FINISHED
    return task.version is not None and (idle or over)


def seed_of(task: str, number: int) -> int:
    """The seed of a round's local work: the same on every machine, another one for every round. 31 bits."""
    return int.from_bytes(hashlib.sha256(f"{task}/{number}".encode()).digest()[:4], "big") >> 1
