"""The states of a task, and the memberships of clients in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from ifed.errors import WrongState
from ifed.messages.enums import HeadState, TaskState
from ifed.messages.tasks import TaskSpec


@dataclass(frozen=True, slots=True)
class Membership:
    """A client that has joined a task.

    Attributes:
        label_counts: the number of its demonstrations by label.
        holdout: the number of its held-out examples.
        withdrawn_at: when it withdrew from the task; None while it takes part.
    """

    task: str
    client: str
    joined_at: datetime
    label_counts: Mapping[str, int]
    holdout: int
    withdrawn_at: datetime | None = None


@dataclass(slots=True)
class Task:
    """A task and its progress.

    Attributes:
        spec: what its admin defined; contains the identity of the model once the first client has joined.
        version: of the newest coefficients; None before the context round has closed.
        served: the version that the adapter endpoint returns.
        reason: why it failed, was paused by the service, stopped early or was rolled back.
        calibrated: the calibration rounds behind `version` in a row.
        head: the label head of `version`.
        warm_start: the task whose coefficients become version 0; NEAREST until the context vector determines it; None for a cold start.
        context_changes: the number of additions to and withdrawals from the context vector.
        context_settled: the number of these changes that were processed, by a new version or by the finding that none can be made.
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
    head: HeadState = HeadState.NONE

    @property
    def has_head(self) -> bool:
        """Whether the task's labels are read by a label head, at least among other ways."""
        return self.spec.head != "words"

    @property
    def name(self) -> str:
        """The name of the task."""
        return self.spec.name

    @property
    def ended(self) -> bool:
        """Whether the task has finished or failed."""
        return self.state in (TaskState.FINISHED, TaskState.FAILED)

    def start(self) -> None:
        """Run a draft, or retry the failed round of a failed task.

        Raises:
            WrongState: the task is neither.
        """
        self._move("start", TaskState.RUNNING, TaskState.DRAFT, TaskState.FAILED)

    def pause(self) -> None:
        """Open no more rounds; an open one still takes contributions until its deadline.

        Raises:
            WrongState: the task is not running.
        """
        self._move("pause", TaskState.PAUSED, TaskState.RUNNING)

    def resume(self) -> None:
        """Run again after a pause.

        Raises:
            WrongState: the task is not paused.
        """
        self._move("resume", TaskState.RUNNING, TaskState.PAUSED)

    def must_be_draft(self, verb: str) -> None:
        """Raise WrongState unless the task is a draft; `verb` says what was attempted."""
        self._must_be(verb, TaskState.DRAFT)

    def must_not_be(self, verb: str, forbidden: TaskState) -> None:
        """Raise WrongState when the task is in the state `forbidden`; `verb` says what was attempted."""
        self._must_be(verb, *(state for state in TaskState if state is not forbidden))

    def fail(self, reason: str) -> None:
        """End the task without success."""
        self.state, self.reason = TaskState.FAILED, reason

    def hold(self, reason: str) -> None:
        """Pause a running task on behalf of the service; `resume` continues it."""
        if self.state is TaskState.RUNNING:
            self.state, self.reason = TaskState.PAUSED, reason

    def finish(self, reason: str | None) -> None:
        """End the task; the reason says why it stopped early, if it did."""
        self.state, self.reason = TaskState.FINISHED, reason

    def roll_back(self, version: int, calibrated: int, head: HeadState = HeadState.NONE) -> None:
        """Serve `version` and continue from it. Unless the task has finished it is paused, and `resume` continues it.

        Args:
            calibrated: the calibration rounds behind `version` in a row.
            head: the label head of `version`.

        Raises:
            WrongState: the task is a draft.
        """
        self.must_not_be("be rolled back", TaskState.DRAFT)
        self.version, self.served, self.calibrated, self.head = version, version, calibrated, head
        self.reason = f"rolled back to version {version}"
        if self.state is not TaskState.FINISHED:
            self.state = TaskState.PAUSED

    def _move(self, verb: str, to: TaskState, *froms: TaskState) -> None:
        self._must_be(verb, *froms)
        self.state, self.reason = to, None

    def _must_be(self, verb: str, *states: TaskState) -> None:
        if self.state not in states:
            raise WrongState(f"task {self.name!r} is {self.state}; it can {verb} only while it is {' or '.join(states)}")
