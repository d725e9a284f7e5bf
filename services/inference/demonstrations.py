"""Labelled texts an operator keeps beside the service, for few-shot prompting. They go to the model and nowhere else."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ifed.errors import BadData, NoDemonstrations
from ifed.messages.tasks import TEXT_SLOT
from ifed.tensors.values import digest_of


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One text with its label."""

    text: str
    label: str


@dataclass(frozen=True, slots=True)
class Demonstrations:
    """What an operator's file holds for a task at one moment.

    Attributes:
        digest: sha256 of the bytes, hexadecimal; an edited file has another.
    """

    task: str
    digest: str
    content: bytes

    def first(self, count: int, labels: list[str]) -> list[Demonstration]:
        """The first `count`.

        Raises:
            NoDemonstrations: fewer lines.
            BadData: a line that is no demonstration of this task, by its number, or a file that is not UTF-8.
        """
        try:
            lines = self.content.decode().split("\n")
        except UnicodeDecodeError as reason:
            raise BadData(f"the demonstrations of task {self.task!r} are not UTF-8") from reason
        numbered = ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
        found = [_read(line, number, labels) for number, line in islice(numbered, count)]
        if len(found) < count:
            raise NoDemonstrations(f"{count} demonstrations were asked for and task {self.task!r} has {len(found)}")
        return found


class DemonstrationFolder:
    """`sentiment.jsonl` holds the demonstrations of the task sentiment: objects with `text` and `label`, the first ones used first."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._known: dict[str, tuple[tuple[int, int], Demonstrations]] = {}

    def of(self, task: str) -> Demonstrations:
        """What the file of a task holds now; read again when its size or time has changed.

        Raises:
            NoDemonstrations: no folder, or no file for the task.
        """
        path = None if self._folder is None else self._folder / f"{task}.jsonl"
        if path is None or not path.is_file():
            raise NoDemonstrations(f"the operator of this service gave no demonstrations for task {task!r}")
        seen = path.stat()
        stamp = (seen.st_mtime_ns, seen.st_size)
        if task not in self._known or self._known[task][0] != stamp:
            content = path.read_bytes()
            self._known[task] = (stamp, Demonstrations(task, digest_of(content), content))
        return self._known[task][1]


def _read(line: str, number: int, labels: list[str]) -> Demonstration:
    try:
        row = json.loads(line)
        text, label = row["text"], row["label"]
    except (ValueError, KeyError, TypeError) as reason:
        raise BadData(f"line {number} of the demonstrations is no JSON object with text and label") from reason
    if not isinstance(text, str) or label not in labels or TEXT_SLOT in text:
        raise BadData(f"line {number} of the demonstrations has no label of the task, or a text that holds {TEXT_SLOT}")
    return Demonstration(text, label)
