"""Read texts one by one from a file: a column of CSV, JSONL or Parquet, or one text per line. At most one batch or field is in memory."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ifed.errors import BadData

READ_AT_ONCE = 1024
LONGEST_FIELD = 10_000_000  # characters, more than a service takes at once; a quote that nothing closes reads no further
ENCODING = "utf-8-sig"  # what Excel writes begins with a mark; other files begin without


def read_texts(path: Path, column: str) -> Iterator[str]:
    """Yield the texts of a file: the named column of .csv, .jsonl or .parquet, otherwise one text per line.

    Raises:
        BadData: a row without a text in that column, by its number; a file in another encoding than UTF-8, or no CSV; or no reader for
            Parquet installed.
    """
    with _told(path):
        yield from _texts(path, column)


def _texts(path: Path, column: str) -> Iterator[str]:
    if _kind(path) == ".csv":
        return _csv(path, column)
    if _kind(path) == ".jsonl":
        return _jsonl(path, column)
    if _kind(path) == ".parquet":
        return _parquet(path, column)
    return _lines(path)


def count_texts(path: Path) -> int | None:
    """Return how many texts a file contains, or None if that cannot be determined.

    Raises:
        BadData: the file is not UTF-8, or not valid CSV.
    """
    with _told(path):
        return _count(path)


def _count(path: Path) -> int | None:
    if _kind(path) == ".csv":
        csv.field_size_limit(LONGEST_FIELD)
        with path.open(encoding=ENCODING, newline="") as file:
            return max(0, sum(1 for row in csv.reader(file, strict=True) if row) - 1)
    if _kind(path) == ".parquet":
        return _parquet_rows(path)
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _csv(path: Path, column: str) -> Iterator[str]:
    csv.field_size_limit(LONGEST_FIELD)  # of the whole process, where anyone may have set it
    with path.open(encoding=ENCODING, newline="") as file:
        rows = csv.DictReader(file, strict=True)
        if column not in (rows.fieldnames or ()):
            raise BadData(f"{path.name} has no column {column!r}; it has {', '.join(rows.fieldnames or ()) or 'none'}")
        for number, row in enumerate(rows, start=1):
            yield _text(row.get(column), path, number, column)


def _jsonl(path: Path, column: str) -> Iterator[str]:
    with path.open(encoding=ENCODING) as file:
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
    with path.open(encoding=ENCODING) as file:
        yield from (line.rstrip("\n") for line in file if line.strip())


def _text(value: object, path: Path, number: int, column: str) -> str:
    if not isinstance(value, str):
        raise BadData(f"row {number} of {path.name} has no text in the column {column!r}")
    return value


def _kind(path: Path) -> str:
    return path.suffix.lower()


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as reason:
        raise BadData(f"{path.name} is not UTF-8 (byte {reason.start}); save it as UTF-8") from reason
    except csv.Error as reason:
        raise BadData(f"{path.name} cannot be read as CSV: {reason}") from reason
