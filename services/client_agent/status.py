"""What an agent is doing right now, for its status page. Knows no HTTP and does no work."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import StrEnum


class Stopping(Exception):
    """The work in progress is dropped because the process is going down."""


class Activity(StrEnum):
    """What an agent does at a moment."""

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
    """The agent's present activity. One writer; readers may see a field change between two reads."""

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
        if activity is not self.activity:
            self.since = time.time()
        self.activity, self.round, self.note = activity, round_ if round_ is not None else self.round, note
        self.done = self.total = 0

    def progress(self, done: int, total: int) -> None:
        """Called from the working thread between two steps; ends it there when the agent is stopping.

        Raises:
            Stopping: the process is going down; a restarted agent does this work again.
        """
        if self.stopping:
            raise Stopping
        self.done, self.total = done, total

    def stop(self) -> None:
        self.stopping = True
