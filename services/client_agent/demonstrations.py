"""Reads and checks one organisation's private labelled texts, and splits off the held-out part. Knows no model and no HTTP."""

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

Row = tuple[str, Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class Columns:
    """Where the texts and labels stand in a file, and how its labels are called in the task."""

    text: str = "text"
    label: str = "label"
    label_map: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One labelled text; `label` is an index into the task's labels."""

    text: str
    label: int


@dataclass(frozen=True, slots=True)
class Split:
    """One organisation's examples, those to learn from and those to measure with."""

    training: tuple[Demonstration, ...]
    holdout: tuple[Demonstration, ...]

    def label_counts(self, labels: Sequence[str]) -> dict[str, int]:
        counts = Counter(example.label for example in self.training)
        return {label: counts[index] for index, label in enumerate(labels)}


def read(path: Path, labels: Sequence[str], columns: Columns) -> list[Demonstration]:
    """All examples of a JSONL, CSV or Parquet file, in its order.

    Raises:
        BadData: the file or a column is missing, or a row is bad; it names the line and says what was expected there.
    """
    if not path.is_file():
        raise BadData(f"{path} is not a file; name one with DATA_FILE")
    if (reader := READERS.get(path.suffix.lower())) is None:
        raise BadData(f"{path.name}: files end in {', '.join(READERS)}; this one ends in {path.suffix or 'nothing'}")
    index = {label: number for number, label in enumerate(labels)}
    examples = [_demonstration(path.name, where, row, columns, index) for where, row in reader(path)]
    if not examples:
        raise BadData(f"{path.name} holds no rows")
    return examples


def split(
    examples: Sequence[Demonstration],
    *,
    holdout: float,
    max_holdout: int,
    learned: Callable[[Demonstration], bool] = lambda _: False,
) -> Split:
    """Set aside a share of each label's examples, chosen by the sha256 of the text.

    The same text always falls on one side, and the same file is always split the same way, in whatever order its rows stand. A file that
    grows is split anew: the shares hold where enough new texts came, and what was `learned` is never held out.

    Args:
        examples: all of them.
        holdout: share to set aside, between 0 and 1; at least one example of a label that has two different texts or more.
        max_holdout: held-out examples at the most; the others of the share go back to training.
        learned: whether an example stands in the context vector already, so that it could not measure any more.

    Raises:
        BadData: nothing is left to learn from or to measure with.
    """
    by_label: dict[int, dict[str, list[Demonstration]]] = {}
    for example in examples:
        by_label.setdefault(example.label, {}).setdefault(_rank(example.text), []).append(example)
    wanted = min(holdout, max_holdout / len(examples))
    taken = {_rank(example.text) for example in examples if learned(example)}
    candidates = sorted(
        rank
        for texts in by_label.values()
        for rank in sorted(set(texts) - taken)[: min(max(1, round(wanted * len(texts))), len(texts) - 1)]
    )
    chosen = _as_many(candidates, Counter(_rank(example.text) for example in examples), max_holdout)
    training = tuple(example for example in examples if _rank(example.text) not in chosen)
    heldout = tuple(example for example in examples if _rank(example.text) in chosen)
    if not training or not heldout:
        raise BadData(
            f"{len(examples)} examples are too few: some to learn from, others to measure with; bring two texts of a label"
        )
    return Split(training, heldout)


def _as_many(ranks: Sequence[str], rows: Mapping[str, int], most: int) -> set[str]:
    """The first of `ranks` that stand for at most `most` rows together; a text may stand in several rows."""
    chosen: set[str] = set()
    held = 0
    for rank in ranks:
        if held + rows[rank] <= most:
            chosen.add(rank)
            held += rows[rank]
    return chosen


def _rank(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _demonstration(file: str, where: str, row: Mapping[str, object], columns: Columns, index: Mapping[str, int]) -> Demonstration:
    for column in (columns.text, columns.label):
        if row.get(column) is None:
            lacks = "nothing in" if column in row else "no"
            raise BadData(f"{file}, {where}: {lacks} column {column!r}; TEXT_COLUMN and LABEL_COLUMN name the columns")
    text, label = row[columns.text], str(row[columns.label]).strip()
    label = columns.label_map.get(label, label)
    if not isinstance(text, str) or not text.strip():
        raise BadData(f"{file}, {where}: the text in column {columns.text!r} is empty or no text")
    try:
        text.encode()
    except UnicodeEncodeError as reason:
        raise BadData(f"{file}, {where}: the text holds half a character (a lone surrogate) at position {reason.start}") from reason
    if label not in index:
        raise BadData(f"{file}, {where}: the label is none of {', '.join(map(repr, index))}; LABEL_MAP can rename it")
    return Demonstration(text, index[label])


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
                raise BadData(f"{path.name}, line {number}: a {type(row).__name__} where a JSON object should be")
            yield f"line {number}", row


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # a long text loses its middle later; it is no reason to refuse a file
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, strict=True)
            for row in reader:
                where = f"line {reader.line_num}"
                if None in row or None in row.values():
                    raise BadData(
                        f"{path.name}, {where}: {len(reader.fieldnames or ())} columns were expected; is a text with a comma not quoted?"
                    )
                yield where, row
    except (csv.Error, UnicodeDecodeError) as reason:
        raise BadData(f"{path.name}, after line {reader.line_num}: {reason}") from reason


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow  # a second to import, and only for this kind of file
    import pyarrow.parquet

    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row
    except pyarrow.ArrowException as reason:
        raise BadData(f"{path.name} is not a Parquet file that can be read ({reason})") from reason


READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv, ".parquet": _parquet}
