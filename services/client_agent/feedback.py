"""What compact updates of this client have lacked so far, on disk, to be added to the next one. Knows no HTTP and no model."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np

from ifed.compact import Change, with_feedback
from ifed.contracts import Assignment
from ifed.errors import IFedError
from ifed.tensors import Coefficients, Float32, TensorBody
from services.client_agent.outbox import written


class Feedback:
    """One folder for each task and client. Writing is atomic.

    What a contribution lacks is kept under its round until the aggregator has the contribution, and counts from then on; a contribution
    that was not received leaves what was lacking before as it was.
    """

    def __init__(self, folder: Path, *, task: str, client: str) -> None:
        self._folder = folder / f"{task}--{client}"
        self._settled = self._folder / "lost.safetensors"

    def compact(
        self, mine: Coefficients | None, start: Coefficients, assignment: Assignment
    ) -> tuple[Coefficients | None, Change | None]:
        """What travels of local steps from `start` to `mine`: all of it, or the change as the task's policy says."""
        dtype = assignment.task.policy.update_dtype
        if mine is None or dtype == "float32":
            return mine, None
        assert assignment.round is not None
        before = None if assignment.version == 0 else self._before(assignment.round)  # a task's first version lacks nothing
        change, lost = with_feedback(mine.values - start.values, before, dtype)
        written(self._pending(assignment.round), TensorBody({"lost": lost}, {"round": assignment.round}).to_bytes())
        return None, change

    def settle(self, round_: int, *, received: bool) -> None:
        """The aggregator has the contribution of a round, or will never have it."""
        if received and self._pending(round_).is_file():
            self._pending(round_).replace(self._settled)
        for path in self._folder.glob("lost-*.safetensors"):
            if int(path.stem.split("-")[1]) <= round_:
                path.unlink(missing_ok=True)

    def _before(self, round_: int) -> Float32 | None:
        """What earlier rounds lack; nothing where that is of another task of this name, or cannot be read."""
        with contextlib.suppress(IFedError, OSError):
            kept = TensorBody.from_bytes(self._settled.read_bytes())
            if int(kept.metadata.get("round", round_)) < round_:
                values: Float32 = kept.tensor("lost", np.float32)
                return values
        return None

    def _pending(self, round_: int) -> Path:
        return self._folder / f"lost-{round_}.safetensors"
