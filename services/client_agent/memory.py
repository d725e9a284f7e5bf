"""Which demonstrations stand in the task's context vector already, on disk, as hashes. Knows no HTTP and no model.

It lets an agent whose data file has grown send what is new and nothing twice: what is sent is written down before, and settled after.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ifed.tensors import digest_of
from services.client_agent.demonstrations import Demonstration
from services.client_agent.outbox import written


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


class Growth:
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
