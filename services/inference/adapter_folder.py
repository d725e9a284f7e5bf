"""Adapters from a folder of files, for a service without an aggregator.

`sentiment.safetensors` is the adapter that task `sentiment` serves, `sentiment@7.safetensors` its version 7; `ifed export --adapter` writes
both. The task is named by the file, whatever its name was where it was calibrated.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from ifed.errors import Malformed, UnknownTask, UnknownVersion
from ifed.messages.bodies import AdapterBody
from ifed.tensors.values import digest_of

SUFFIX = ".safetensors"


class AdapterFolder:
    """A folder of adapters. A file is read again when its size or modification time has changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._digests: dict[Path, tuple[tuple[int, int], str]] = {}

    async def adapter(
        self,
        task: str,
        *,
        version: int | None = None,
        known: str | None = None,
        wait: float = 0.0,  # noqa: ARG002  # a folder has no long poll
    ) -> tuple[str, AdapterBody] | None:
        """Return digest and adapter as `AggregatorClient.adapter` does, without waiting; None when the digest is `known`.

        Raises:
            UnknownTask: there is no file for the task.
            UnknownVersion: there is no file for the version.
            Malformed: the file is not an adapter, or not of the version in its name.
        """
        return await asyncio.to_thread(self._read, task, version, known)

    def tasks(self) -> list[str]:
        """Return the tasks that have an adapter to serve."""
        return sorted(path.name.removesuffix(SUFFIX) for path in self._folder.glob(f"*{SUFFIX}") if "@" not in path.name)

    def _read(self, task: str, version: int | None, known: str | None) -> tuple[str, AdapterBody] | None:
        path = self._folder / f"{task}{'' if version is None else f'@{version}'}{SUFFIX}"
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size)
            if known is not None and self._digests.get(path) == (stamp, known):
                return None
            content = path.read_bytes()
        except FileNotFoundError as reason:
            if version is None:
                raise UnknownTask(f"the adapter folder has no adapter of task {task!r}") from reason
            raise UnknownVersion(f"the adapter folder has no version {version} of task {task!r}") from reason
        digest = digest_of(content)
        self._digests[path] = (stamp, digest)
        return None if digest == known else (digest, _parse(content, path, task, version))


def _parse(content: bytes, path: Path, task: str, version: int | None) -> AdapterBody:
    """Parse an adapter and give it the task of its file's name."""
    body = AdapterBody.from_bytes(content)
    if version is not None and body.meta.version != version:
        raise Malformed(f"{path.name} holds version {body.meta.version}, not {version}; rename it")
    return AdapterBody(body.context, body.coefficients, body.meta.model_copy(update={"task": task}))
