"""Texts from a file, one by one: a column of CSV, JSONL or Parquet, or a line each. Keeps no more than a batch in memory."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ifed.errors import BadData

READ_AT_ONCE = 1024


def read_texts(path: Path, column: str) -> Iterator[str]:
    """The texts of a file, by its ending: .csv, .jsonl, .parquet with the named column; any other has a text on each line.

    Raises:
        BadData: a row without a text in that column, by its number; or no reader for Parquet installed.
    """
    if path.suffix == ".csv":
        return _csv(path, column)
    if path.suffix == ".jsonl":
        return _jsonl(path, column)
    if path.suffix == ".parquet":
        return _parquet(path, column)
    return _lines(path)


def count_texts(path: Path) -> int | None:
    """How many texts a file holds, where that can be told without reading them all; None where no reader is installed."""
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return max(0, sum(1 for row in csv.reader(file) if row) - 1)
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _csv(path: Path, column: str) -> Iterator[str]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if column not in (rows.fieldnames or ()):
            raise BadData(f"{path.name} has no column {column!r}; it has {', '.join(rows.fieldnames or ()) or 'none'}")
        for number, row in enumerate(rows, start=1):
            yield _text(row.get(column), path, number, column)


def _jsonl(path: Path, column: str) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as reason:
                    raise BadData(f"row {number} of {path.name} is not JSON") from reason
                yield _text(row.get(column) if isinstance(row, dict) else None, path, number, column)


def _parquet(path: Path, column: str) -> Iterator[str]:
    try:
        import pyarrow.parquet as parquet  # only for this format; not everyone who classifies has it
    except ImportError as reason:
        raise BadData("reading Parquet needs pyarrow: pip install pyarrow") from reason
    file = parquet.ParquetFile(path)
    if column not in file.schema_arrow.names:
        raise BadData(f"{path.name} has no column {column!r}; it has {', '.join(file.schema_arrow.names)}")
    number = 0
    for batch in file.iter_batches(READ_AT_ONCE, columns=[column]):
        for value in batch.column(0).to_pylist():
            number += 1
            yield _text(value, path, number, column)


def _parquet_rows(path: Path) -> int | None:
    with suppress(ImportError):  # told with the first text, by name
        import pyarrow.parquet as parquet

        return int(parquet.read_metadata(path).num_rows)
    return None


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        yield from (line.rstrip("\n") for line in file if line.strip())


def _text(value: object, path: Path, number: int, column: str) -> str:
    if not isinstance(value, str):
        raise BadData(f"row {number} of {path.name} has no text in the column {column!r}")
    return value
