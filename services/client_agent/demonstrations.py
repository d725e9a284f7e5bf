"""Read and check one organisation's labelled texts, and split off the held-out part."""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ifed.errors import BadData
from ifed.messages.texts import LabelledText

Row = tuple[str, Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of the texts and labels in a data file, and a map from the file's labels to the task's."""

    text: str = "text"
    label: str = "label"
    label_map: Mapping[str, str] = field(default_factory=dict)


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
        BadData: the file or a column is missing, or a row is bad; the message names the line and the expected content.
    """
    if not path.is_file():
        raise BadData(f"{path} is not a file; set DATA_FILE to the file of labelled texts")
    if (reader := READERS.get(path.suffix.lower())) is None:
        raise BadData(f"{path.name}: unsupported file type {path.suffix!r}; supported are {', '.join(READERS)}")
    index = {label: number for number, label in enumerate(labels)}
    examples = [_demonstration(path.name, where, row, columns, index) for where, row in reader(path)]
    if not examples:
        raise BadData(f"{path.name} contains no rows")
    return examples


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


def _demonstration(
    file: str, where: str, row: Mapping[str, object], columns: Columns, index: Mapping[str, int]
) -> LabelledText[int]:
    """Return a row as an example; errors never contain values of the row."""
    for column in (columns.text, columns.label):
        if row.get(column) is None:
            problem = f"column {column!r} is empty" if column in row else f"no column {column!r}"
            raise BadData(f"{file}, {where}: {problem}; TEXT_COLUMN and LABEL_COLUMN name the columns")
    text, label = row[columns.text], str(row[columns.label]).strip()
    label = columns.label_map.get(label, label)
    if not isinstance(text, str) or not text.strip():
        raise BadData(f"{file}, {where}: the text in column {columns.text!r} is empty or not a string")
    try:
        text.encode()
    except UnicodeEncodeError as reason:
        raise BadData(f"{file}, {where}: the text contains a lone surrogate at position {reason.start}") from reason
    if label not in index:
        raise BadData(f"{file}, {where}: the label is none of {', '.join(map(repr, index))}; LABEL_MAP can map it")
    return LabelledText(text, index[label])


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode())
            except UnicodeDecodeError as reason:
                raise BadData(
                    f"{path.name}, line {number}: not UTF-8 from byte {reason.start} on; save the file as UTF-8"
                ) from reason
            except (ValueError, RecursionError) as reason:
                raise BadData(f"{path.name}, line {number}: not a JSON object ({reason})") from reason
            if not isinstance(row, dict):
                raise BadData(f"{path.name}, line {number}: not a JSON object but a {type(row).__name__}")
            yield f"line {number}", row


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # a long text is cut later, when it becomes tokens
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, strict=True)
            for row in reader:
                where = f"line {reader.line_num}"
                if None in row or None in row.values():
                    raise BadData(
                        f"{path.name}, {where}: expected {len(reader.fieldnames or ())} columns; quote a text that contains a comma"
                    )
                yield where, row
    except (csv.Error, UnicodeDecodeError) as reason:
        raise BadData(f"{path.name}, after line {reader.line_num}: {reason}") from reason


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow  # takes a second to import, so only for this kind of file
    import pyarrow.parquet

    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row
    except pyarrow.ArrowException as reason:
        raise BadData(f"{path.name} cannot be read as Parquet ({reason})") from reason


READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv, ".parquet": _parquet}
