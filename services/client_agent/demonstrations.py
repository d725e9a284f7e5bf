"""Read and check one organisation's labelled texts, and split off the held-out part."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from ifed.data_files import UTF_8, BadRow, Format, Row, describe_type, only_refusals, read_rows, unit_of
from ifed.errors import BadData
from ifed.messages.texts import LabelledText

NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?")
LINES_SHOWN, KINDS_SHOWN = 10, 8  # in a refusal
COMPARED = 200  # characters of a label, to find the nearest label of the task


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of the texts and labels in a data file, a map from the file's labels to the task's, and the file's encoding."""

    text: str = "text"
    label: str = "label"
    label_map: Mapping[str, str] = field(default_factory=dict)
    encoding: str = UTF_8


@dataclass(frozen=True, slots=True)
class Split:
    """One organisation's examples, split into those to train on and those to evaluate with."""

    training: tuple[LabelledText[int], ...]
    holdout: tuple[LabelledText[int], ...]

    def label_counts(self, labels: Sequence[str]) -> dict[str, int]:
        """Return the number of training examples of each label, 0 included."""
        counts = Counter(example.label for example in self.training)
        return {label: counts[index] for index, label in enumerate(labels)}


def read_data_file(path: Path, labels: Sequence[str], columns: Columns) -> list[LabelledText[int]]:
    """Return all examples of a JSONL, CSV or Parquet file, in its order.

    Raises:
        BadData: the file or a column is missing, or rows are bad; the message counts them and names their lines and what is wrong, but
            shows no value of the file.
    """
    matching = LabelMatching(labels, columns.label_map)
    problems: dict[str, list[int]] = {}
    examples: list[LabelledText[int]] = []
    rows = 0
    with only_refusals(path):
        _check_exists(path)
        for row in read_rows(path, [columns.text, columns.label], Format(columns.encoding)):
            rows += 1
            example = row.problem if isinstance(row, BadRow) else _example(row, columns, matching)
            if isinstance(example, str):
                problems.setdefault(example, []).append(row.number)
            else:
                examples.append(example)
    if problems:
        raise BadData(_describe(path, problems, rows))
    if not examples:
        raise BadData(f"{path.name} contains no rows")
    return examples


def check_data_file(path: Path, columns: Columns) -> None:
    """Check what can be checked without a task: that the file exists and can be read, and has the two columns.

    Raises:
        BadData: it cannot be used.
    """
    with only_refusals(path):
        _check_exists(path)
        if next(read_rows(path, [columns.text, columns.label], Format(columns.encoding)), None) is None:
            raise BadData(f"{path.name} contains no rows")


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise BadData(f"{path} is not a file; set DATA_FILE to the file of labelled texts")


class LabelMatching:
    """Finds the task's label of a value in a data file.

    A string matches exactly. Otherwise numbers match by their value and truth values by their word, however they are written: 1, 1.0
    and "1.0" match "1", and true matches "True". Two labels that would then be one are matched exactly only.
    """

    def __init__(self, labels: Sequence[str], label_map: Mapping[str, str]) -> None:
        self._labels = {label: index for index, label in enumerate(labels)}
        self._exact = {label: label for label in labels} | dict(label_map)
        normalised = Counter(_normalised(label) for label in self._exact)
        self._expected = f"the label is none of {', '.join(map(repr, labels))}"
        self._described: dict[str, str] = {}
        self._normalised = {_normalised(key): label for key, label in self._exact.items() if normalised[_normalised(key)] == 1}

    def index_of(self, value: object) -> int | None:
        """Return the index of the task's label that `value` stands for; None if it stands for none."""
        written = str(value).strip()
        label = self._exact.get(written) or self._normalised.get(_normalised(value))
        return None if label is None else self._labels.get(label)

    def describe(self, value: object) -> str:
        """Describe a label that matches none: its type and the nearest label, but not the label."""
        if not isinstance(value, str):
            return f"{self._expected} but {describe_type(value)}; LABEL_MAP can map it"
        if value not in self._described:
            self._described[value] = self._nearest(value.strip())
        return self._described[value]

    def _nearest(self, written: str) -> str:
        expected = self._expected
        for label in self._exact:
            if written.casefold() == label.casefold():
                return f"{expected}, and differs from {label!r} in capitals only; LABEL_MAP can map it"
        near = difflib.get_close_matches(written[:COMPARED], [label[:COMPARED] for label in self._exact], n=1)
        if not near:
            return f"{expected}, nor like one of them; LABEL_MAP can map it"
        share = difflib.SequenceMatcher(None, written[:COMPARED], near[0]).ratio()
        return f"{expected}; the nearest, {near[0]!r}, is the same to {share:.0%}; LABEL_MAP can map it"


def _normalised(value: object) -> str:
    """Return one way to write a truth value or a finite number; anything else as it is."""
    written = str(value).strip()
    if isinstance(value, bool) or written.casefold() in ("true", "false"):
        return written.casefold()
    if isinstance(value, int | float | Decimal):
        written = format(Decimal(str(value)), "f")
    if NUMBER.fullmatch(written):
        return (written.rstrip("0").rstrip(".") if "." in written else written) or "0"
    return written


def split_holdout(
    examples: Sequence[LabelledText[int]],
    *,
    holdout: float,
    max_holdout: int,
    learned: Callable[[LabelledText[int]], bool] = lambda _: False,
) -> Split:
    """Hold out a share of each label's examples, chosen by the sha256 of the text.

    All rows of one text fall on the same side, and the split does not depend on the order of the rows. A file that grows is split again:
    the shares hold as far as there are enough new texts, and `learned` examples are never held out.

    Args:
        examples: all examples of the file.
        holdout: share to hold out, between 0 and 1; at least one example of each label that has two different texts or more.
        max_holdout: held-out examples at most; the others of the share are training examples.
        learned: whether an example is already part of the context vector and must not be held out.

    Raises:
        BadData: no training example or no held-out example is left.
    """
    by_label: dict[int, dict[str, list[LabelledText[int]]]] = {}
    for example in examples:
        by_label.setdefault(example.label, {}).setdefault(_text_hash(example.text), []).append(example)
    share = min(holdout, max_holdout / len(examples))
    learned_hashes = {_text_hash(example.text) for example in examples if learned(example)}
    candidates = sorted(
        text_hash
        for texts in by_label.values()
        for text_hash in sorted(set(texts) - learned_hashes)[: min(max(1, round(share * len(texts))), len(texts) - 1)]
    )
    held_out = _up_to(max_holdout, candidates, Counter(_text_hash(example.text) for example in examples))
    split = Split(
        training=tuple(example for example in examples if _text_hash(example.text) not in held_out),
        holdout=tuple(example for example in examples if _text_hash(example.text) in held_out),
    )
    if not split.training or not split.holdout:
        raise BadData(
            f"{len(examples)} examples are too few to train on some and evaluate with others; "
            "provide at least two different texts of one label"
        )
    return split


def _up_to(max_rows: int, text_hashes: Sequence[str], row_counts: Mapping[str, int]) -> set[str]:
    """Return texts in order while they have at most `max_rows` rows together, skipping those that do not fit."""
    selected: set[str] = set()
    rows = 0
    for text_hash in text_hashes:
        if rows + row_counts[text_hash] <= max_rows:
            selected.add(text_hash)
            rows += row_counts[text_hash]
    return selected


def _text_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _example(row: Row, columns: Columns, matching: LabelMatching) -> LabelledText[int] | str:
    """Return a row as an example, or what is wrong with it, without its values."""
    text, label = row.values
    for column, value in ((columns.text, text), (columns.label, label)):
        if value is None or (isinstance(value, float | Decimal) and value != value):  # NaN is how pandas writes nothing
            return f"column {column!r} is empty"
    if not isinstance(text, str):
        return f"the text in column {columns.text!r} is empty or not a string but {describe_type(text)}"
    if not text.strip():
        return f"the text in column {columns.text!r} is empty or not a string"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "the text contains a lone surrogate, which is no character"
    if (index := matching.index_of(label)) is None:
        return matching.describe(label)
    return LabelledText(text, index)


def _describe(path: Path, problems: Mapping[str, Sequence[int]], rows: int) -> str:
    """Describe all bad rows of a file: how many, and by kind in which lines."""
    unit = unit_of(path)
    bad = sum(len(numbers) for numbers in problems.values())
    kinds = [f"{_lines(unit, numbers)}: {problem}" for problem, numbers in problems.items()]
    if bad == 1:
        return f"{path.name}, {kinds[0]}"
    more = f"; and {len(kinds) - KINDS_SHOWN} other problems" if len(kinds) > KINDS_SHOWN else ""
    return f"{path.name}: {bad} of {rows} rows cannot be used. {'; '.join(kinds[:KINDS_SHOWN])}{more}"


def _lines(unit: str, numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"{unit} {numbers[0]}"
    shown: Iterable[int] = numbers[:LINES_SHOWN]
    more = f" and {len(numbers) - LINES_SHOWN} more" if len(numbers) > LINES_SHOWN else ""
    return f"{unit}s {', '.join(map(str, shown))}{more}"
