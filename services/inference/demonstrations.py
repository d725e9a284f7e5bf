"""Demonstrations for few-shot prompting: labelled texts in files beside the service, used in prompts only."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ifed.errors import BadData, NoDemonstrations
from ifed.messages.tasks import TEXT_SLOT
from ifed.messages.texts import LabelledText
from ifed.tensors.values import digest_of


@dataclass(frozen=True, slots=True)
class DemonstrationFile:
    """The demonstrations of a task as read from its file at one moment.

    Attributes:
        task: the task of the demonstrations.
        digest: sha256 of the content, hexadecimal.
        content: JSON lines, objects with `text` and `label`.
    """

    task: str
    digest: str
    content: bytes

    def first(self, count: int, labels: list[str]) -> list[LabelledText[str]]:
        """Return the first `count` demonstrations.

        Raises:
            NoDemonstrations: the file has fewer.
            BadData: the file is not UTF-8, or a line is not an object with a text and one of `labels`.
        """
        try:
            lines = self.content.decode("utf-8-sig").split("\n")
        except UnicodeDecodeError as reason:
            raise BadData(f"the demonstrations of task {self.task!r} are not UTF-8") from reason
        numbered = ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
        demonstrations = [_parse(line, number, labels) for number, line in islice(numbered, count)]
        if len(demonstrations) < count:
            raise NoDemonstrations(f"{count} demonstrations were asked for and task {self.task!r} has {len(demonstrations)}")
        return demonstrations


class DemonstrationFolder:
    """A folder of demonstrations: `sentiment.jsonl` holds those of task `sentiment`, in the order in which they are used."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._files: dict[str, tuple[tuple[int, int], DemonstrationFile]] = {}

    def load(self, task: str) -> DemonstrationFile:
        """Return the demonstrations of a task; the file is read again when its size or modification time has changed.

        Raises:
            NoDemonstrations: there is no folder, or no file for the task.
        """
        path = None if self._folder is None else self._folder / f"{task}.jsonl"
        if path is None or not path.is_file():
            raise NoDemonstrations(f"this service has no demonstrations for task {task!r}")
        status = path.stat()
        stamp = (status.st_mtime_ns, status.st_size)
        if task not in self._files or self._files[task][0] != stamp:
            content = path.read_bytes()
            self._files[task] = (stamp, DemonstrationFile(task, digest_of(content), content))
        return self._files[task][1]


def _parse(line: str, number: int, labels: list[str]) -> LabelledText[str]:
    try:
        row = json.loads(line)
        text, label = row["text"], row["label"]
    except (ValueError, KeyError, TypeError) as reason:
        raise BadData(f"line {number} of the demonstrations is not a JSON object with text and label") from reason
    if not isinstance(text, str) or label not in labels or TEXT_SLOT in text:
        raise BadData(f"line {number} of the demonstrations has no label of the task, or a text that contains {TEXT_SLOT}")
    return LabelledText(text, label)
