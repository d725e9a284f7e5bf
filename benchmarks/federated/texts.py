"""The data sets of arXiv 2511.06757 from the folder the caller names, and their division among clients. Holds no text of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
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


def read(folder: Path, source: Source, part: Literal["train", "test"], count: int) -> list[Example]:
    """The first `count` examples of a part; the files are shuffled."""
    with (folder / f"{source.key}.{part}.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]
    return [Example(row["text"], source.labels.index(row["label"])) for row in rows]


def dirichlet_split(truths: Sequence[int], clients: int, alpha: float, seed: int) -> list[list[int]]:
    """Indices of each client's examples: of every label, shares drawn from a symmetric Dirichlet distribution (arXiv 1909.06335).

    Drawn again until the smallest client has `LEAST` examples.

    Raises:
        ValueError: no such division was found.
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
    raise ValueError(f"{len(truths)} examples do not suffice for {clients} clients of at least {LEAST}")
