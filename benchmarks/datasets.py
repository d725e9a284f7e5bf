"""The data sets of arXiv 2511.06757, or one's own, read from folders, and their division among clients."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from ifed.errors import BadTemplate
from ifed.messages.tasks import check_template
from ifed.messages.texts import LabelledText

MIN_CLIENT_EXAMPLES = 16
Split = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set with its template; those of the paper have the templates of I2CL (arXiv 2405.14660).

    Attributes:
        key: names its cells.
        prefix: of its files, `{prefix}train.jsonl` and `{prefix}test.jsonl`; by default the key and a dot.
    """

    key: str
    title: str
    template: str
    labels: tuple[str, ...]
    prefix: str | None = None

    def path(self, folder: Path, split: Split) -> Path:
        """Return the file of a split."""
        return folder / f"{f'{self.key}.' if self.prefix is None else self.prefix}{split}.jsonl"


DATASETS = {
    dataset.key: dataset
    for dataset in (
        Dataset("subj", "SUBJ", "Sentence: {text}\nLabel:", ("objective", "subjective")),
        Dataset("agnews", "AG News", "News: {text}\nType:", ("World", "Sports", "Business", "Technology")),
        Dataset("emoc", "EmoContext", "Dialogue: {text}\nEmotion:", ("others", "happy", "sad", "angry")),
    )
}


class InvalidDataset(Exception):
    """A file is missing, not UTF-8, has too few examples, or has a line that is not an example of its data set."""


def own_dataset(folder: Path, template: str, labels: Sequence[str]) -> Dataset:
    """Return the data set of a folder with `train.jsonl` and `test.jsonl`.

    Raises:
        InvalidDataset: template or labels are not those of a task.
    """
    try:
        check_template(template)
    except BadTemplate as refusal:
        raise InvalidDataset(f"--template: {refusal.detail}") from refusal
    if len(labels) < 2 or len(set(labels)) < len(labels) or not all(label and label == label.strip() for label in labels):
        raise InvalidDataset("--labels takes at least two different labels with commas between them, such as --labels spam,ham")
    name = folder.resolve().name
    key = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._") or "own"
    return Dataset(key, name, template, tuple(labels), prefix="")


def count_examples(folder: Path, dataset: Dataset, split: Split) -> int:
    """Return the number of lines of a split that are not empty.

    Raises:
        InvalidDataset: the file cannot be read as UTF-8.
    """
    return sum(1 for line in _lines(dataset.path(folder, split)) if line.strip())


def read_examples(folder: Path, dataset: Dataset, split: Split, count: int) -> list[LabelledText[int]]:
    """Return the first `count` examples of a split, skipping empty lines; the files are shuffled.

    Raises:
        InvalidDataset: the file cannot be read as UTF-8, has fewer examples, or has a line that is not `{"text": …, "label": …}` with a
            label of the data set.
    """
    path = dataset.path(folder, split)
    numbered = ((number, line) for number, line in enumerate(_lines(path), 1) if line.strip())
    examples = [_parse_example(dataset, line, f"{path}:{number}") for number, line in islice(numbered, count)]
    if len(examples) < count:
        raise InvalidDataset(f"{path} has {len(examples)} examples, expected {count}")
    return examples


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InvalidDataset(f"{path} cannot be read: {error.strerror}; --data names the folder of the data sets") from error
    except UnicodeDecodeError as error:
        raise InvalidDataset(f"{path} cannot be read as UTF-8: {error}") from error


def read_splits(
    folder: Path, dataset: Dataset, training: int, test: int
) -> tuple[list[LabelledText[int]], list[LabelledText[int]]]:
    """Return the first `training` examples of the training split and the first `test` of the test split.

    Raises:
        InvalidDataset: see `read_examples`.
    """
    return read_examples(folder, dataset, "train", training), read_examples(folder, dataset, "test", test)


def digest_examples(*splits: Sequence[LabelledText[int]]) -> str:
    """Return the SHA-256 of the texts and labels of these splits, in hexadecimal."""
    pairs = [[(example.text, example.label) for example in split] for split in splits]
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def _parse_example(dataset: Dataset, line: str, place: str) -> LabelledText[int]:
    try:
        row = json.loads(line)
        text, label = row["text"], dataset.labels.index(row["label"])
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidDataset(_expected_line(dataset, place)) from error
    if not isinstance(text, str):
        raise InvalidDataset(_expected_line(dataset, place))
    return LabelledText(text, label)


def _expected_line(dataset: Dataset, place: str) -> str:
    return f'{place}: a line must be {{"text": …, "label": …}} with one of the labels {", ".join(dataset.labels)}'


def dirichlet_split(labels: Sequence[int], clients: int, alpha: float, seed: int) -> list[list[int]]:
    """Divide examples among clients by a symmetric Dirichlet distribution over each label (arXiv 1909.06335); return each client's indices.

    The division is drawn again until every client has at least `MIN_CLIENT_EXAMPLES`.

    Raises:
        InvalidDataset: no such division was drawn in a thousand attempts.
    """
    random = np.random.default_rng(seed)
    label_of = np.asarray(labels)
    for _ in range(1000):
        parts: list[list[int]] = [[] for _ in range(clients)]
        for label in np.unique(label_of):
            indices = random.permutation(np.flatnonzero(label_of == label))
            cuts = (np.cumsum(random.dirichlet([alpha] * clients)) * len(indices)).astype(int)[:-1]
            for part, share in zip(parts, np.split(indices, cuts), strict=True):
                part.extend(share.tolist())
        if min(map(len, parts)) >= MIN_CLIENT_EXAMPLES:
            return [random.permutation(part).tolist() for part in parts]
    raise InvalidDataset(
        f"{len(labels)} examples are too few for {clients} clients of at least {MIN_CLIENT_EXAMPLES}; take more examples or fewer clients"
    )
