"""Finished work on disk until the aggregator has it, so that a restarted agent sends the same bytes again. Knows no HTTP."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from ifed.errors import IFedError
from ifed.messages.rounds import Assignment
from ifed.tensors.quantization import QuantizedUpdate, with_feedback
from ifed.tensors.values import Coefficients, Float32, TensorBody, digest_of
from services.client_agent.demonstrations import Demonstration


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


@dataclass(slots=True)
class Sent:
    """What one body condensed.

    Attributes:
        demonstrations: their hashes.
        body: file of the body in this folder until the aggregator's answer came; None from then on.
        round: the context round it was for; None for an addition.
    """

    demonstrations: list[str]
    body: str | None = None
    round: int | None = None


@dataclass(slots=True)
class Notes:
    """Everything that is remembered of one client's part in one task."""

    file: list[int] = field(default_factory=list)
    sent: dict[str, Sent] = field(default_factory=dict)


class Memory:
    """One folder for each task and client. Writing is atomic."""

    def __init__(self, folder: Path, *, task: str, client: str) -> None:
        self._folder = folder / f"{task}--{client}"
        self._path = self._folder / "condensed.json"
        self._notes = self._read()

    def _read(self) -> Notes:
        if not self._path.is_file():
            return Notes()
        kept = json.loads(self._path.read_text())
        return Notes(kept["file"], {digest: Sent(**one) for digest, one in kept["sent"].items()})

    @property
    def empty(self) -> bool:
        """Whether nothing was ever sent from here; then nobody knows what stands in the context vector."""
        return not self._notes.sent

    @property
    def known(self) -> frozenset[str]:
        """Hashes of the demonstrations that were sent."""
        return frozenset(one for sent in self._notes.sent.values() for one in sent.demonstrations)

    def new_among(self, demonstrations: Sequence[Demonstration]) -> list[Demonstration]:
        """Those that were not sent yet, in their order; a demonstration that stands in the file twice counts twice."""
        left = Counter(one for sent in self._notes.sent.values() for one in sent.demonstrations)
        found = []
        for demonstration in demonstrations:
            if left[key := hash_of(demonstration)] > 0:
                left[key] -= 1
            else:
                found.append(demonstration)
        return found

    @property
    def count(self) -> int:
        """Demonstrations that were sent."""
        return sum(len(sent.demonstrations) for sent in self._notes.sent.values())

    @property
    def waits(self) -> bool:
        """Whether the answer to something that was sent never came."""
        return any(sent.body is not None for sent in self._notes.sent.values())

    def forget(self) -> None:
        """Begin anew: the aggregator counts nothing of this client's."""
        for digest in list(self._notes.sent):
            self.settle(digest, received=False)

    def unsettled(self) -> list[tuple[str, int | None, bytes]]:
        """Bodies whose answer never came: digest, round, bytes. Sending them again is safe, the aggregator knows them by digest."""
        waiting = [(digest, sent) for digest, sent in self._notes.sent.items() if sent.body is not None]
        return [(digest, sent.round, (self._folder / str(sent.body)).read_bytes()) for digest, sent in waiting]

    def begin(self, body: bytes, demonstrations: Sequence[Demonstration], *, round_: int) -> None:
        """Write down what is about to be sent to a context round. The aggregator counts nothing else of this client's then."""
        if digest_of(body) not in self._notes.sent:
            self.forget()
        self.intend(body, demonstrations, round_=round_)

    def intend(self, body: bytes, demonstrations: Sequence[Demonstration], *, round_: int | None = None) -> None:
        """Write down what is about to be sent, with its bytes; an addition when no round is named."""
        digest = digest_of(body)
        name = f"context-{digest[:16]}.safetensors"
        written(self._folder / name, body)
        self._notes.sent[digest] = Sent([hash_of(one) for one in demonstrations], name, round_)
        self._save()

    def settle(self, digest: str, *, received: bool, file: Sequence[int] = ()) -> None:
        """Keep that the aggregator has it, and the state of the data file; or forget that it was to be sent."""
        sent = self._notes.sent.pop(digest, None)
        if sent is None:
            return
        name, sent.body = sent.body, None
        if received:
            self._notes.sent[digest], self._notes.file = sent, list(file)
        self._save()
        if name is not None:
            (self._folder / name).unlink(missing_ok=True)

    def saw(self, file: Sequence[int]) -> None:
        """Remember the state of the data file in which there was nothing to send."""
        self._notes.file = list(file)
        self._save()

    def changed(self, file: Sequence[int]) -> bool:
        """Whether there may be something to send: the data file is another than the one last seen, or an answer never came.

        An agent that has never sent anything waits until it is asked.
        """
        return self.waits or (not self.empty and self._notes.file != list(file))

    def _save(self) -> None:
        written(self._path, json.dumps(asdict(self._notes)).encode())


class DataFileWatcher:
    """Notices that the data file has changed, once for each change.

    Args:
        file: the private data.
        folder: where memories are kept.
    """

    def __init__(self, file: Path, folder: Path, *, task: str) -> None:
        self._file, self._folder, self._task = file, folder, task
        self._memories: dict[str, Memory] = {}
        self._looked_at: list[int] | None = None

    def memory(self, client: str) -> Memory:
        """What this client has sent."""
        if client not in self._memories:
            self._memories[client] = Memory(self._folder, task=self._task, client=client)
        return self._memories[client]

    def state(self) -> list[int]:
        """Size and time of the last change of the file; empty when it is not there."""
        try:
            found = self._file.stat()
        except OSError:
            return []
        return [found.st_size, found.st_mtime_ns]

    def noticed(self, client: str | None) -> bool:
        """Whether the file is in a state that was neither sent nor looked at before."""
        state = self.state()
        if client is None or state == self._looked_at:
            return False
        self._looked_at = state
        return self.memory(client).changed(state)


def hash_of(demonstration: Demonstration) -> str:
    """What is kept of a demonstration, on this organisation's own disk."""
    return hashlib.sha256(f"{demonstration.label}\n{demonstration.text}".encode("utf-8", "surrogatepass")).hexdigest()


class ErrorFeedback:
    """One folder for each task and client. Writing is atomic.

    What a contribution lacks is kept under its round until the aggregator has the contribution, and counts from then on; a contribution
    that was not received leaves what was lacking before as it was.
    """

    def __init__(self, folder: Path, *, task: str, client: str) -> None:
        self._folder = folder / f"{task}--{client}"
        self._settled = self._folder / "lost.safetensors"

    def compact(
        self, mine: Coefficients | None, start: Coefficients, assignment: Assignment
    ) -> tuple[Coefficients | None, QuantizedUpdate | None]:
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
