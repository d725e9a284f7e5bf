"""An agent's present activity, as its status page shows it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum


class Stopping(Exception):
    """The process is shutting down, so the work in progress is dropped."""


class ExitCode(IntEnum):
    """How the agent's process ended."""

    DONE = 0  # the task has finished, or this client has withdrawn
    REFUSED = 1  # the aggregator refuses this client, or an error that nobody expected
    SETTINGS = 2  # a setting, or the address, file or folder that it names, cannot be used
    DATA = 3  # the data file cannot be used


class Activity(StrEnum):
    """What an agent is doing."""

    STARTING = "starting"
    READING = "reading data"
    LOADING = "loading the model"
    ASKING = "asking"
    WAITING = "waiting"
    CONDENSING = "condensing"
    CALIBRATING = "calibrating"
    EVALUATING = "evaluating"
    SENDING = "sending"
    RETRYING = "retrying"
    DONE = "done"
    STOPPED = "stopped"


@dataclass(slots=True)
class Status:
    """The agent's present activity and its counts.

    Attributes:
        done: steps of the activity that are done, out of `total`.
        round: the round that was last worked on.
        note: why the agent waits, retries or has stopped.
        training: training examples.
        holdout: held-out examples.
        contributions: contributions that the aggregator has received.
        since: Unix time at which the activity began.
        stopping: the process is shutting down.
    """

    activity: Activity = Activity.STARTING
    done: int = 0
    total: int = 0
    round: int | None = None
    note: str = ""
    training: int = 0
    holdout: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    contributions: int = 0
    since: float = field(default_factory=time.time)
    stopping: bool = False

    def begin(self, activity: Activity, *, round_: int | None = None, note: str = "") -> None:
        """Start an activity; the round stays as it is when none is given."""
        if activity is not self.activity:
            self.since = time.time()
        self.activity, self.round, self.note = activity, round_ if round_ is not None else self.round, note
        self.done = self.total = 0

    def progress(self, done: int, total: int) -> None:
        """Report progress from the working thread, between two steps.

        Raises:
            Stopping: the process is shutting down; a restarted agent does this work again.
        """
        if self.stopping:
            raise Stopping
        self.done, self.total = done, total

    def stop(self) -> None:
        """Make the working thread stop at its next step."""
        self.stopping = True
