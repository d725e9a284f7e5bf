"""What a caller's `model` may name: a task, one of its versions, or another way to answer for it. Knows no adapters."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ifed.errors import UnknownTask

BARE, FEW_SHOT = "bare", "few-shot"
MODEL_NAME = re.compile(
    r"(?P<task>[a-z0-9][a-z0-9._-]{0,62})(@((?P<version>[0-9]{1,9})|(?P<bare>bare)|(?P<few>few-shot)(:(?P<shots>[1-9][0-9]{0,2}))?))?"
)
SHOTS = 12


@dataclass(frozen=True, slots=True)
class ModelName:
    """A task, and perhaps a pinned version, the bare model, or the bare model after so many demonstrations."""

    task: str
    version: int | None = None
    bare: bool = False
    shots: int | None = None

    @classmethod
    def parse(cls, model: str) -> ModelName:
        """Read `task`, `task@7`, `task@bare`, `task@few-shot` or `task@few-shot:4`.

        Raises:
            UnknownTask: anything else.
        """
        if (match := MODEL_NAME.fullmatch(model)) is None:
            raise UnknownTask(
                f"{model!r} names no task; give the name of a task, task@7 for its version 7, task@bare for the bare model, "
                "or task@few-shot:12 for the bare model after 12 demonstrations"
            )
        if match["version"] is not None:
            return cls(match["task"], version=int(match["version"]))
        if match["few"] is not None:
            return cls(match["task"], shots=int(match["shots"] or SHOTS))
        return cls(match["task"], bare=match["bare"] is not None)
