"""The client agent's state on disk, with which a restarted agent resumes and sends the same bytes again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ifed.errors import IFedError, RepeatedContext
from ifed.messages.texts import LabelledText
from ifed.private_files import make_private_file, make_private_folder
from ifed.tensors.quantization import QuantizedUpdate, UpdateDType, with_feedback
from ifed.tensors.values import Float32, TensorBody, digest_of
from services.client_agent.demonstrations import Split


@dataclass(slots=True)
class SentContext:
    """One context body that was sent, or is about to be.

    Attributes:
        demonstrations: hashes of the demonstrations it was made from.
        body: name of the file that holds the bytes until the aggregator answers; None from then on.
        round: its context round; None for an addition.
    """

    demonstrations: list[str]
    body: str | None = None
    round: int | None = None


class AgentState:
    """One client's contributions to one task, in the folder `<task>--<client>`.

    `begin` stores a contribution before it is sent and `settle` stores the aggregator's answer, so that a crash between the two loses
    nothing: the aggregator recognises a body by its digest and counts it once. Every file is written atomically.

    | file | content |
    |---|---|
    | `round-<number>-<key>.safetensors` | the finished contribution to a round, until it is settled |
    | `condensed.json` | the context bodies sent, as hashes of their demonstrations, and the data file's signature at that time |
    | `context-<digest>.safetensors` | a context body that has not been answered yet |
    | `lost.safetensors`, `lost-<number>.safetensors` | see `ErrorFeedback` |

    Args:
        folder: the agent's state directory.

    Attributes:
        error_feedback: the quantisation error of this client's updates.
    """

    def __init__(self, folder: Path, *, task: str, client: str) -> None:
        self._folder = folder / f"{task}--{client}"
        self._index = self._folder / "condensed.json"
        self._data_file: list[int] = []
        self._sent: dict[str, SentContext] = {}
        if self._index.is_file():
            stored = json.loads(self._index.read_text())
            self._data_file = stored["file"]
            self._sent = {digest: SentContext(**context) for digest, context in stored["sent"].items()}
        self.error_feedback = ErrorFeedback(self._folder)

    def finished(self, round_: int, key: str) -> bytes | None:
        """Return the contribution to a round that was finished for exactly the assignment that `key` identifies."""
        path = self._contribution(round_, key)
        return path.read_bytes() if path.is_file() else None

    def begin(
        self, round_: int | None, body: bytes, *, key: str = "", demonstrations: Sequence[LabelledText[int]] | None = None
    ) -> None:
        """Store a contribution that is about to be sent.

        Args:
            round_: its round; None for an addition to the context vector.
            body: the bytes to send.
            key: identifies the assignment that a round's contribution was made for; see `finished`.
            demonstrations: for a context body, those it was made from. A body for a context round replaces everything that this
                client sent to the context vector before.
        """
        if round_ is not None and not (path := self._contribution(round_, key)).is_file():
            write_atomically(path, body)
        if demonstrations is None:
            return
        digest = digest_of(body)
        if round_ is not None and digest not in self._sent:
            self.forget_context()
        name = f"context-{digest[:16]}.safetensors"
        write_atomically(self._folder / name, body)
        self._sent[digest] = SentContext([hash_of(demonstration) for demonstration in demonstrations], name, round_)
        self._save()

    def settle(self, round_: int | None, body: bytes, *, received: bool, data_file: Sequence[int] = ()) -> None:
        """Store the aggregator's answer to a contribution, and delete the files that are no longer needed.

        Args:
            round_: as in `begin`; the contributions to earlier rounds are deleted with it.
            received: False when the aggregator refused it permanently; then it counts as never sent.
            data_file: signature of the data file that a context body was made from.
        """
        self._settle_context(digest_of(body), received=received, data_file=data_file)
        if round_ is None:
            return
        self.error_feedback.settle(round_, received=received)
        for path in self._folder.glob("round-*.safetensors"):
            if int(path.name.split("-")[1]) <= round_:
                path.unlink(missing_ok=True)

    @property
    def awaits_answer(self) -> bool:
        """Whether a context body was sent that the aggregator has not answered."""
        return any(context.body is not None for context in self._sent.values())

    def unanswered(self) -> list[tuple[int | None, bytes]]:
        """Return the round and the bytes of each context body without an answer; sending one again is safe."""
        return [
            (context.round, (self._folder / context.body).read_bytes())
            for context in self._sent.values()
            if context.body is not None
        ]

    @property
    def sent_hashes(self) -> frozenset[str]:
        """Hashes of the demonstrations that were sent."""
        return frozenset(digest for context in self._sent.values() for digest in context.demonstrations)

    @property
    def sent_blocks(self) -> list[list[str]]:
        """Hashes of the demonstrations of each context body that was sent."""
        return [context.demonstrations for context in self._sent.values()]

    @property
    def sent_count(self) -> int:
        """The number of demonstrations in all context vectors sent so far, including those not yet answered.

        The demonstrations themselves are never sent.
        """
        return sum(len(context.demonstrations) for context in self._sent.values())

    def unsent(self, demonstrations: Sequence[LabelledText[int]]) -> list[LabelledText[int]]:
        """Return those that were not sent yet, in their order; a text that occurs twice in the data file counts twice."""
        remaining = Counter(digest for context in self._sent.values() for digest in context.demonstrations)
        new = []
        for demonstration in demonstrations:
            if remaining[digest := hash_of(demonstration)] > 0:
                remaining[digest] -= 1
            else:
                new.append(demonstration)
        return new

    def forget_context(self) -> None:
        """Discard every context body, because the aggregator has none of this client."""
        for digest in list(self._sent):
            self._settle_context(digest, received=False)

    def record_nothing_to_send(self, data_file: Sequence[int]) -> None:
        """Record that the data file with this signature has no demonstrations to send."""
        self._data_file = list(data_file)
        self._save()

    def may_have_more(self, data_file: Sequence[int]) -> bool:
        """Return whether there may be demonstrations to send: the data file has changed, or an answer is missing.

        False for a client that has never sent any: it waits for an assignment.
        """
        return self.awaits_answer or (bool(self._sent) and self._data_file != list(data_file))

    def _settle_context(self, digest: str, *, received: bool, data_file: Sequence[int] = ()) -> None:
        context = self._sent.pop(digest, None)
        if context is None:
            return
        name, context.body = context.body, None
        if received:
            self._sent[digest], self._data_file = context, list(data_file)
        self._save()
        if name is not None:
            (self._folder / name).unlink(missing_ok=True)

    def _contribution(self, round_: int, key: str) -> Path:
        return self._folder / f"round-{round_}-{key[:16]}.safetensors"

    def _save(self) -> None:
        sent = {digest: asdict(context) for digest, context in self._sent.items()}
        write_atomically(self._index, json.dumps({"file": self._data_file, "sent": sent}).encode())


class ReleasedTexts:
    """The texts behind the context vectors that were sent for a task, by hash, kept across restarts.

    Whoever has two context vectors of one organisation can subtract one from the other. So the texts of each vector that was sent form a
    block, and a later vector holds each block as a whole or not at all, and besides them no text or at least `fewest`: the aggregator
    never learns about a smaller group. Whether a vector was received makes no difference.

    The file is `<task>--texts-<key>.json`, for the data file and not for the client, whose name the aggregator chooses.

    Args:
        folder: the agent's state directory.
        task: the task, by the agent's own setting.
        data_file: path of the private data file.
        fewest: texts in a context vector, at least.
    """

    def __init__(self, folder: Path, *, task: str, data_file: Path, fewest: int) -> None:
        key = hashlib.sha256(str(data_file.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:12]
        self._path = folder / f"{task}--texts-{key}.json"
        self._fewest = fewest
        self._blocks: list[list[str]] = []
        self._data_set, self._most = "", 0
        self._sets: list[frozenset[str]] = []
        if self._path.is_file():
            stored = json.loads(self._path.read_text())
            self._blocks, self._data_set, self._most = stored["blocks"], stored["data_set"], stored["most"]
            self._sets = [frozenset(block) for block in self._blocks]

    def holds(self, example: LabelledText[int]) -> bool:
        """Return whether a text is in a context vector that was sent, so that it must not be held out later."""
        return any(_text_hash(example) in block for block in self._sets)

    def choose(self, split: Split, *, most: int) -> list[LabelledText[int]]:
        """Return the training examples of a context vector that replaces all earlier ones, `most` at the most.

        Raises:
            RepeatedContext: a vector was sent before, and the examples asked for would show by subtraction which texts are in both.
        """
        training = split.training
        present = Counter(_text_hash(example) for example in training)
        earlier: Counter[str] = Counter()
        for block in self._blocks:
            if any(digest in present for digest in block):
                earlier.update(block)
        if not earlier:
            return list(training[:most])
        if earlier - present:
            raise RepeatedContext(
                f"{(earlier - present).total()} of the {earlier.total()} texts whose context vector was sent are no longer among the training "
                "texts of the data file, and a vector of the others would show them by subtraction; put them back, or take part under another "
                "task name"
            )
        asked_for = Counter(_text_hash(example) for example in training[:most])
        is_same_data = self._data_set == _data_set(split)
        if earlier.total() > most or (is_same_data and most != self._most and asked_for != earlier):
            raise RepeatedContext(
                f"the context vector of {earlier.total()} texts was sent for this task, and now one of {asked_for.total()} of the same texts is "
                "asked for; the difference would show single texts"
            )
        chosen: list[LabelledText[int]] = []
        new: list[LabelledText[int]] = []
        remaining = earlier.copy()
        for example in training:
            is_earlier = remaining[digest := _text_hash(example)] > 0
            remaining[digest] -= is_earlier
            (chosen if is_earlier else new).append(example)
        new = [] if is_same_data else new[: most - len(chosen)]
        return chosen + new if len(new) >= self._fewest else chosen

    def choose_addition(self, split: Split, unsent: Sequence[LabelledText[int]], *, most: int) -> list[LabelledText[int]]:
        """Return those of the unsent examples that may be added to the context vector, `most` at the most; none while they are too few.

        An example of a vector that was refused is unsent, but its text was released: it is added with all texts of that vector or not at all.
        """
        released = Counter(digest for block in self._blocks for digest in block)
        fresh = Counter(_text_hash(example) for example in split.training) - released
        pending = Counter(_text_hash(example) for example in unsent) - fresh
        whole: Counter[str] = Counter()
        for block in map(Counter, self._blocks):
            if whole + block <= pending and whole.total() + block.total() <= most:
                whole += block
        chosen: list[LabelledText[int]] = []
        new: list[LabelledText[int]] = []
        for example in unsent:
            digest = _text_hash(example)
            if whole[digest] > 0:
                whole[digest] -= 1
                chosen.append(example)
            elif fresh[digest] > 0:
                fresh[digest] -= 1
                new.append(example)
        new = new[: most - len(chosen)]
        return chosen + new if len(new) >= self._fewest else chosen

    def record(self, demonstrations: Sequence[LabelledText[int]], split: Split, *, most: int) -> None:
        """Record a context vector before it is sent; those of its texts that were not sent before become a block.

        Args:
            demonstrations: all texts of the vector.
            split: the data set that they are of.
            most: texts that the task takes.
        """
        known = Counter(digest for block in self._blocks for digest in block)
        new = []
        for example in demonstrations:
            if known[digest := _text_hash(example)] > 0:
                known[digest] -= 1
            else:
                new.append(digest)
        if not new:
            return
        self._blocks.append(new)
        self._sets.append(frozenset(new))
        self._data_set, self._most = _data_set(split), most
        stored = {"data_set": self._data_set, "most": most, "blocks": self._blocks}
        write_atomically(self._path, json.dumps(stored).encode())

    def adopt(self, blocks: Sequence[Sequence[str]], split: Split, *, most: int) -> None:
        """Record what an agent of an earlier release sent, which kept hashes of texts with their labels."""
        if self._blocks:
            return
        for block in blocks:
            sent = Counter(block)
            demonstrations = []
            for example in split.training:
                if sent[digest := hash_of(example)] > 0:
                    sent[digest] -= 1
                    demonstrations.append(example)
            self.record(demonstrations, split, most=most)


def _data_set(split: Split) -> str:
    """Return the sha256 of a data set, whatever its order, labels and split."""
    digests = sorted(_text_hash(example) for example in (*split.training, *split.holdout))
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _text_hash(example: LabelledText[int]) -> str:
    """Return the sha256 of a text without its label, which the order of a task's labels decides."""
    return hashlib.sha256(example.text.encode("utf-8", "surrogatepass")).hexdigest()


class ErrorFeedback:
    """The quantisation error of a client's updates, carried over to its next update (error feedback).

    The error of a round's update waits in `lost-<round>.safetensors` and becomes `lost.safetensors` when the aggregator has received the
    update. A refused update leaves the earlier error unchanged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._carried_over = folder / "lost.safetensors"

    def quantize(self, change: Float32, dtype: UpdateDType, *, round_: int, version: int) -> QuantizedUpdate:
        """Quantise a change of coefficients together with the error of earlier rounds, and keep the new error until `settle`.

        Args:
            change: what the local steps added, float32, shape (layer, site, coefficient, G).
            dtype: `float16`, `int8` or `int4`.
            round_: the calibration round.
            version: version of the coefficients the change starts from; 0, a task's first, has no earlier error.
        """
        earlier = None if version == 0 else self._earlier(round_)
        update, error = with_feedback(change, earlier, dtype)
        write_atomically(self._pending(round_), TensorBody({"lost": error}, {"round": round_}).to_bytes())
        return update

    def settle(self, round_: int, *, received: bool) -> None:
        """Carry over the error of a round whose update was received; delete that of one whose update was not."""
        if received and self._pending(round_).is_file():
            self._pending(round_).replace(self._carried_over)
        for path in self._folder.glob("lost-*.safetensors"):
            if int(path.stem.split("-")[1]) <= round_:
                path.unlink(missing_ok=True)

    def _earlier(self, round_: int) -> Float32 | None:
        """Return the error carried over; None if the file is of an earlier task of this name or cannot be read."""
        with contextlib.suppress(IFedError, OSError):
            body = TensorBody.from_bytes(self._carried_over.read_bytes())
            if int(body.metadata.get("round", round_)) < round_:
                error: Float32 = body.tensor("lost", np.float32)
                return error
        return None

    def _pending(self, round_: int) -> Path:
        return self._folder / f"lost-{round_}.safetensors"


class DataFileWatcher:
    """Watch the private data file for changes, reporting each once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last_seen: list[int] | None = None

    def signature(self) -> list[int]:
        """Return the file's size in bytes and the time of its last change in nanoseconds; empty when it does not exist."""
        try:
            stat = self._path.stat()
        except OSError:
            return []
        return [stat.st_size, stat.st_mtime_ns]

    def has_new_data(self, state: AgentState) -> bool:
        """Return whether the file has changed since the last call, and `state` may have demonstrations to send."""
        signature = self.signature()
        if signature == self._last_seen:
            return False
        self._last_seen = signature
        return state.may_have_more(signature)


def hash_of(demonstration: LabelledText[int]) -> str:
    """Return the sha256 of a demonstration and its label; the state directory stores nothing else of it."""
    return hashlib.sha256(f"{demonstration.label}\n{demonstration.text}".encode("utf-8", "surrogatepass")).hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, atomically, and sync it to the disk."""
    make_private_folder(path.parent)
    partial = path.with_name(path.name + ".part")
    make_private_file(partial)
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
