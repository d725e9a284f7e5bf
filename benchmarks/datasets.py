"""The data sets of arXiv 2511.06757 from the folder the caller names, and their division among clients. Holds no text of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from ifed.modeling.prompts import Example

LEAST = 16  # examples of the smallest client: a draw that leaves one less is drawn again


@dataclass(frozen=True, slots=True)
class Source:
    """A data set, asked about as I2CL (arXiv 2405.14660) asks.

    Attributes:
        key: how its files begin, `{key}.train.jsonl` and `{key}.test.jsonl`.
    """

    key: str
    title: str
    template: str
    labels: tuple[str, ...]


SOURCES = {
    source.key: source
    for source in (
        Source("subj", "SUBJ", "Sentence: {text}\nLabel:", ("objective", "subjective")),
        Source("agnews", "AG News", "News: {text}\nType:", ("World", "Sports", "Business", "Technology")),
        Source("emoc", "EmoContext", "Dialogue: {text}\nEmotion:", ("others", "happy", "sad", "angry")),
    )
}


class BadTexts(Exception):
    """A file of texts cannot be read as UTF-8, is too short, for itself or for the clients, or has a line that is no example of its data set."""


def read(folder: Path, source: Source, part: Literal["train", "test"], count: int) -> list[Example]:
    """The first `count` examples of a part, empty lines aside; the files are shuffled.

    Raises:
        BadTexts: no such file or none in UTF-8, fewer examples, or a line that is not `{"text": …, "label": …}` with a label of the data set.
    """
    path = folder / f"{source.key}.{part}.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise BadTexts(f"{path} cannot be read: {error.strerror}; --data names the folder of the data sets") from error
    except UnicodeDecodeError as error:
        raise BadTexts(f"{path} cannot be read as UTF-8: {error}") from error
    there = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    found = [_example(source, line, f"{path}:{number}") for number, line in islice(there, count)]
    if len(found) < count:
        raise BadTexts(f"{path} has {len(found)} examples, {count} are asked for")
    return found


def read_both(folder: Path, source: Source, training: int, test: int) -> tuple[list[Example], list[Example]]:
    """So many examples of the training part, and so many of the test part.

    Raises:
        BadTexts: as in `read`.
    """
    return read(folder, source, "train", training), read(folder, source, "test", test)


def digest_of(*parts: Sequence[Example]) -> str:
    """SHA-256 of the texts and labels of these parts, in hexadecimal digits."""
    told = [[(one.text, one.label) for one in part] for part in parts]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _example(source: Source, line: str, place: str) -> Example:
    try:
        row = json.loads(line)
        text, label = row["text"], source.labels.index(row["label"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadTexts(_wanted(source, place)) from error
    if not isinstance(text, str):
        raise BadTexts(_wanted(source, place))
    return Example(text, label)


def _wanted(source: Source, place: str) -> str:
    return f'{place}: a line must be {{"text": …, "label": …}} with one of the labels {", ".join(source.labels)}'


def dirichlet_split(truths: Sequence[int], clients: int, alpha: float, seed: int) -> list[list[int]]:
    """Indices of each client's examples: of every label, shares drawn from a symmetric Dirichlet distribution (arXiv 1909.06335).

    Drawn again until the smallest client has `LEAST` examples.

    Raises:
        BadTexts: no such division was found.
    """
    random = np.random.default_rng(seed)
    labels = np.asarray(truths)
    for _ in range(1000):
        parts: list[list[int]] = [[] for _ in range(clients)]
        for label in np.unique(labels):
            mine = random.permutation(np.flatnonzero(labels == label))
            cuts = (np.cumsum(random.dirichlet([alpha] * clients)) * len(mine)).astype(int)[:-1]
            for part, indices in zip(parts, np.split(mine, cuts), strict=True):
                part.extend(indices.tolist())
        if min(map(len, parts)) >= LEAST:
            return [random.permutation(part).tolist() for part in parts]
    raise BadTexts(
        f"{len(truths)} examples do not suffice for {clients} clients of at least {LEAST}; take more examples or fewer clients"
    )
