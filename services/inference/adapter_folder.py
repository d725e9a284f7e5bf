"""Adapters from files, for a service without an aggregator. Knows their names and contents, nothing of who asks.

`sentiment.safetensors` is what the task serves, `sentiment@7.safetensors` its version 7. `ifed export --adapter` writes both. A task is called
as its file is, whatever it was called where it was calibrated.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from ifed.errors import Malformed, UnknownTask, UnknownVersion
from ifed.messages.bodies import AdapterBody
from ifed.tensors.values import digest_of

SUFFIX = ".safetensors"


class AdapterFolder:
    """One folder. A file that is replaced is read again when its size or time has changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._digests: dict[Path, tuple[tuple[int, int], str]] = {}

    async def adapter(
        self,
        task: str,
        *,
        version: int | None = None,
        known: str | None = None,
        wait: float = 0.0,  # noqa: ARG002  # nothing to wait for
    ) -> tuple[str, AdapterBody] | None:
        """As `AggregatorClient.adapter`, without waiting.

        Raises:
            UnknownTask: no file for the task.
            UnknownVersion: no file for this version.
            Malformed: a file that is no adapter, or of another version than its name says.
        """
        return await asyncio.to_thread(self._read, task, version, known)

    def tasks(self) -> list[str]:
        """Tasks that have a file to serve."""
        return sorted(path.name.removesuffix(SUFFIX) for path in self._folder.glob(f"*{SUFFIX}") if "@" not in path.name)

    def _read(self, task: str, version: int | None, known: str | None) -> tuple[str, AdapterBody] | None:
        path = self._folder / f"{task}{'' if version is None else f'@{version}'}{SUFFIX}"
        try:
            seen = path.stat()
            stamp = (seen.st_mtime_ns, seen.st_size)
            kept = self._digests.get(path)
            if known is not None and kept == (stamp, known):
                return None
            body = path.read_bytes()
        except FileNotFoundError as reason:
            if version is None:
                raise UnknownTask(f"there is no adapter for task {task!r} in the service's folder") from reason
            raise UnknownVersion(f"there is no version {version} of task {task!r} in the service's folder") from reason
        digest = digest_of(body)
        self._digests[path] = (stamp, digest)
        return None if digest == known else (digest, _named(AdapterBody.from_bytes(body), path, task, version))


def _named(body: AdapterBody, path: Path, task: str, version: int | None) -> AdapterBody:
    if version is not None and body.meta.version != version:
        raise Malformed(f"{path.name} holds version {body.meta.version}, not {version}; rename it")
    return AdapterBody(body.context, body.coefficients, body.meta.model_copy(update={"task": task}))
