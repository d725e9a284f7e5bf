"""Labelled texts from the folder the caller names. Holds none of its own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ifed.modeling.prompts import Example


@dataclass(frozen=True)
class Source:
    """A data set as the paper asks about it."""

    name: str
    file: str
    template: str
    labels: tuple[str, ...]


SOURCES = (
    Source("SUBJ", "subj.train.jsonl", "Sentence: {text}\nLabel:", ("objective", "subjective")),
    Source("AG News", "agnews.train.jsonl", "News: {text}\nType:", ("World", "Sports", "Business", "Technology")),
)


def read(folder: Path, source: Source, count: int) -> list[Example]:
    """The first `count` examples; the files are shuffled."""
    with (folder / source.file).open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]
    return [Example(row["text"], source.labels.index(row["label"])) for row in rows]
