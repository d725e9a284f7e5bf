"""Finished work on disk until the aggregator has it, so that a restarted agent sends the same bytes again. Knows no HTTP."""

from __future__ import annotations

import os
from pathlib import Path


class Outbox:
    """One file a round under a folder of the task. Writing is atomic: a file is there whole, or not at all."""

    def __init__(self, folder: Path, *, task: str) -> None:
        self._parent, self._task = folder, task
        self._folder = folder / task

    def belong_to(self, client: str) -> None:
        """Keep this client's work apart from that of others who share the folder."""
        self._folder = self._parent / f"{self._task}--{client}"

    def _path(self, number: int, key: str) -> Path:
        return self._folder / f"round-{number}-{key[:16]}.safetensors"

    def keep(self, number: int, key: str, body: bytes) -> None:
        """Keep the body made for round `number` from the assignment that `key` identifies."""
        written(self._path(number, key), body)

    def find(self, number: int, key: str) -> bytes | None:
        """The body kept for exactly this assignment, if there is one."""
        path = self._path(number, key)
        return path.read_bytes() if path.is_file() else None

    def forget(self, number: int) -> None:
        """Drop what was kept for rounds up to `number`: they are received or over."""
        for path in self._folder.glob("round-*.safetensors"):
            if int(path.name.split("-")[1]) <= number:
                path.unlink(missing_ok=True)


def written(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_name(path.name + ".part")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
