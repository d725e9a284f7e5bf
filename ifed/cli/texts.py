"""Read texts one by one from a file: a column of a data file, or one text per line. At most one batch or field is in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ifed.data_files import READERS, UTF_8, BadRow, Format, check_encoding, count_rows, read_lines, read_rows, unit_of
from ifed.errors import BadData


def read_texts(path: Path, column: str, encoding: str = UTF_8) -> Iterator[str]:
    """Yield the texts of a file: the named column of a data file, otherwise one text per line.

    Raises:
        BadData: a row without a text in that column, by its line; a file in another encoding or no valid CSV; a column that exists twice;
            or no reader for Parquet installed.
    """
    form = _format(encoding)
    if path.suffix.lower() not in READERS:
        yield from read_lines(path, form)
        return
    for row in read_rows(path, [column], form):
        where = f"{path.name}, {unit_of(path)} {row.number}"
        if isinstance(row, BadRow):
            raise BadData(f"{where}: {row.problem}")
        (text,) = row.values
        if not isinstance(text, str):
            raise BadData(f"{where}: no text in the column {column!r}")
        yield text


def count_texts(path: Path, column: str = "text", encoding: str = UTF_8) -> int | None:
    """Return how many texts a file contains, or None if that cannot be determined.

    Raises:
        BadData: the file is in another encoding, or not valid CSV.
    """
    return count_rows(path, [column], _format(encoding))


def _format(encoding: str) -> Format:
    try:
        return Format(check_encoding(encoding), option="--encoding ", shows_columns=True)
    except ValueError as reason:
        raise BadData(str(reason)) from reason
