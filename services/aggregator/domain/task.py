"""What is kept besides rounds and tasks: parties, members, and the aggregates. Plain values: knows no database and no HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from ifed.errors import WrongState
from ifed.messages.enums import TaskState
from ifed.messages.tasks import TaskSpec


@dataclass(frozen=True, slots=True)
class Membership:
    """A client's part in a task: how many examples by label it has, no text; `withdrawn_at` once it takes part no more."""

    task: str
    client: str
    joined_at: datetime
    label_counts: Mapping[str, int]
    holdout: int
    withdrawn_at: datetime | None = None


@dataclass(slots=True)
class Task:
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

    spec: TaskSpec
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
