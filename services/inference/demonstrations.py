"""Labelled texts an operator keeps beside the service, for few-shot prompting. They go to the model and nowhere else."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ifed.errors import BadData
from ifed.tasks import TEXT_SLOT
from services.inference.errors import NoDemonstrations


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One text with its label."""

    text: str
    label: str


class DemonstrationFolder:
    """`sentiment.jsonl` holds the demonstrations of the task sentiment: objects with `text` and `label`, the first ones used first."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def first(self, task: str, count: int, labels: list[str]) -> list[Demonstration]:
        """The first `count` of a task.

        Raises:
            NoDemonstrations: no folder, no file for the task, or fewer lines in it.
            BadData: a line that is no demonstration of this task, by its number.
        """
        path = None if self._folder is None else self._folder / f"{task}.jsonl"
        if path is None or not path.is_file():
            raise NoDemonstrations(f"the operator of this service gave no demonstrations for task {task!r}")
        found: list[Demonstration] = []
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if len(found) == count:
                    break
                if line.strip():
                    found.append(_read(line, number, labels))
        if len(found) < count:
            raise NoDemonstrations(f"{count} demonstrations were asked for and task {task!r} has {len(found)}")
        return found


def _read(line: str, number: int, labels: list[str]) -> Demonstration:
    try:
        row = json.loads(line)
        text, label = row["text"], row["label"]
    except (ValueError, KeyError, TypeError) as reason:
        raise BadData(f"line {number} of the demonstrations is no JSON object with text and label") from reason
    if not isinstance(text, str) or label not in labels or TEXT_SLOT in text:
        raise BadData(f"line {number} of the demonstrations has no label of the task, or a text that holds {TEXT_SLOT}")
    return Demonstration(text, label)
