"""Read named columns of a JSONL, CSV or Parquet file row by row; the agent and the command line read data files with this alone.

Nothing here repeats what a file holds: a problem is described by its line and kind, and exceptions of libraries, which may quote a value,
are not passed on.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

from ifed.errors import BadData, IFedError

if TYPE_CHECKING:
    import pyarrow

BATCH_ROWS = 1024
LONGEST_FIELD = 10_000_000  # characters of a CSV cell; a quote that nothing closes reads no further
DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a vertical bar"}
UTF_8 = "utf-8"
WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True, slots=True)
class Row:
    """The values of the wanted columns in one row, in the order of the columns; `number` is its line, or its row in Parquet."""

    number: int
    values: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be read; `problem` says why, without a value of the row."""

    number: int
    problem: str


@dataclass(frozen=True, slots=True)
class Format:
    """What is not evident from a data file itself.

    Attributes:
        encoding: the encoding of JSONL and CSV files, by its name in Python.
        option: how a reader sets the encoding, for messages: `DATA_ENCODING=` or `--encoding `.
        shows_columns: whether messages may name the file's columns; those of a file without a heading are its first row.
    """

    encoding: str = UTF_8
    option: str = "DATA_ENCODING="
    shows_columns: bool = False


class Reader(Protocol):
    """Yields the rows of one format."""

    def __call__(self, path: Path, columns: Sequence[str], form: Format) -> Iterator[Row | BadRow]: ...


class _Object(list[tuple[str, object]]):
    """A JSON object as its pairs, in which a name that occurs twice is noticed."""


def read_rows(path: Path, columns: Sequence[str], form: Format | None = None) -> Iterator[Row | BadRow]:
    """Yield every row of a data file in its order, with the values of `columns`; other columns are not read.

    Raises:
        BadData: the file type, its encoding or its columns cannot be used, or a column that is wanted exists twice.
    """
    if (reader := READERS.get(path.suffix.lower())) is None:
        raise BadData(f"{path.name}: unsupported file type {path.suffix!r}; supported are {', '.join(READERS)}")
    with only_refusals(path):
        yield from reader(path, columns, form or Format())


def read_lines(path: Path, form: Format) -> Iterator[str]:
    """Yield the lines of a text file that are not blank.

    Raises:
        BadData: the file is in another encoding.
    """
    with only_refusals(path), _text(path, form) as file:
        yield from (line.rstrip("\n") for line in file if line.strip())


def count_rows(path: Path, columns: Sequence[str], form: Format | None = None) -> int | None:
    """Return the number of rows, or None if the package that reads the format is not installed.

    Raises:
        BadData: the file cannot be read.
    """
    form = form or Format()
    with only_refusals(path):
        if path.suffix.lower() == ".parquet":
            try:
                import pyarrow.parquet
            except ImportError:  # reported with the first row
                return None
            return int(pyarrow.parquet.read_metadata(path).num_rows)
        if READERS.get(path.suffix.lower()) is not _csv:
            with path.open("rb") as lines:
                return sum(1 for line in lines if line.strip())
        count = 0
        for row in _csv_rows(path, _delimiter(path, columns, form)[0], form):
            if isinstance(row, BadRow):
                raise BadData(f"{path.name}, line {row.number}: {row.problem}")
            count += 1
        return max(0, count - 1)


@contextmanager
def only_refusals(path: Path) -> Iterator[None]:
    """Turn every exception but our own into a refusal without its message, its cause and its values."""
    try:
        yield
    except IFedError:
        raise
    except OSError as reason:
        raise BadData(f"{path.name} cannot be read ({reason.strerror or type(reason).__name__})") from None
    except Exception as reason:  # noqa: BLE001  # any exception of a parser may quote the file
        raise BadData(f"{path.name} cannot be read ({type(reason).__name__})") from None


def _jsonl(path: Path, columns: Sequence[str], form: Format) -> Iterator[Row | BadRow]:
    for number, line in _encoded_lines(path, form):
        try:
            text = line if isinstance(line, str) else line.decode(form.encoding)
        except UnicodeDecodeError:
            yield BadRow(number, _not_in(form))
            continue
        if text.strip():
            yield _json_row(number, text, columns)


def _json_row(number: int, line: str, columns: Sequence[str]) -> Row | BadRow:
    try:
        pairs = json.loads(line, object_pairs_hook=_Object)
    except json.JSONDecodeError as reason:
        return BadRow(number, f"not a JSON object ({reason.msg})")
    except (ValueError, RecursionError):
        return BadRow(number, "not a JSON object that can be read: it is nested too deeply, or holds a number of too many digits")
    if not isinstance(pairs, _Object):
        return BadRow(number, f"not a JSON object but {describe_type(pairs)}")
    values = []
    for column in columns:
        values_of_column = [value for name, value in pairs if name == column]
        if len(values_of_column) != 1:
            return BadRow(number, _wrong_count(column, len(values_of_column)))
        values += values_of_column
    return Row(number, tuple(values))


def _csv(path: Path, columns: Sequence[str], form: Format) -> Iterator[Row | BadRow]:
    delimiter, heading = _delimiter(path, columns, form)
    if not heading:
        return
    for column in columns:
        if (count := heading.count(column)) != 1:
            problem = _wrong_count(column, count)
            raise BadData(f"{path.name}, line 1: {problem}{'' if count else _columns_seen(heading, column, delimiter, form)}")
    positions = [heading.index(column) for column in columns]
    rows = _csv_rows(path, delimiter, form)
    next(rows)
    for row in rows:
        if isinstance(row, BadRow):
            yield row
        elif len(row.values) != len(heading):
            cells = DELIMITERS[delimiter]
            yield BadRow(row.number, f"expected {len(heading)} columns; put quotation marks around a text that contains {cells}")
        else:
            yield Row(row.number, tuple(row.values[position] for position in positions))


def _csv_rows(path: Path, delimiter: str, form: Format) -> Iterator[Row | BadRow]:
    """Yield every row that is not empty, the heading too, by its first line."""
    csv.field_size_limit(LONGEST_FIELD)  # of the whole process, where anyone may have set it
    with _text(path, form, newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        while True:
            number = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as reason:
                yield BadRow(number, f"cannot be read as CSV: {reason}")
                return
            if cells:
                yield Row(number, tuple(cells))


def _delimiter(path: Path, columns: Sequence[str], form: Format) -> tuple[str, list[str]]:
    """Return the delimiter and the heading: those with which every wanted column is there, else those with the most columns."""
    headings: dict[str, list[str]] = {}
    problems = []
    for delimiter in DELIMITERS:
        first = next(_csv_rows(path, delimiter, form), None)
        if isinstance(first, BadRow):
            problems.append(first)
        else:
            headings[delimiter] = [] if first is None else [str(name) for name in first.values]
    if not headings:
        raise BadData(f"{path.name}, line {problems[0].number}: {problems[0].problem}")
    fitting = [delimiter for delimiter, heading in headings.items() if set(columns) <= set(heading)]
    chosen = fitting[0] if fitting else max(headings, key=lambda delimiter: len(headings[delimiter]))
    return chosen, headings[chosen]


def _columns_seen(heading: Sequence[str], column: str, delimiter: str, form: Format) -> str:
    """Describe a heading in which a column is missing, by names only where they may be shown."""
    if form.shows_columns:
        return f"; it has {', '.join(heading)}"
    similar = [number for number, name in enumerate(heading, 1) if name.strip().casefold() == column.strip().casefold()]
    also = f"; column {similar[0]} differs from it in capitals or spaces" if similar else ""
    count = "1 column" if len(heading) == 1 else f"{len(heading)} columns"
    return f" in the heading, which has {count} with {DELIMITERS[delimiter]} between them{also}"


def _parquet(path: Path, columns: Sequence[str], form: Format) -> Iterator[Row | BadRow]:
    try:
        import pyarrow  # takes a second to import, so only for this kind of file; not everyone who classifies has it
        import pyarrow.parquet
    except ImportError:
        raise BadData("reading Parquet needs pyarrow: pip install pyarrow") from None
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            for column in columns:
                if (count := names.count(column)) != 1:
                    seen = f"; it has {', '.join(names)}" if not count and form.shows_columns else ""
                    raise BadData(f"{path.name}: {_wrong_count(column, count)}{seen}")
            for batch in file.iter_batches(BATCH_ROWS, columns=list(columns)):
                for index in range(batch.num_rows):
                    number += 1
                    yield _parquet_row(number, batch, index, columns)
    except (pyarrow.ArrowException, OSError) as reason:
        raise BadData(f"{path.name} cannot be read as Parquet after row {number} ({type(reason).__name__})") from None


def _parquet_row(number: int, batch: pyarrow.RecordBatch, index: int, columns: Sequence[str]) -> Row | BadRow:
    values = []
    for column in columns:
        cell = batch.column(column)[index]
        try:
            values.append(cell.as_py())
        except Exception:  # noqa: BLE001  # pyarrow quotes the cell
            return BadRow(number, f"the {cell.type} in column {column!r} cannot be read")
    return Row(number, tuple(values))


READERS: Mapping[str, Reader] = {".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}


def unit_of(path: Path) -> str:
    """Return what the rows of a file are numbered by: `line`, or `row` in Parquet."""
    return "row" if path.suffix.lower() == ".parquet" else "line"


def describe_type(value: object) -> str:
    """Describe a value by its type, in the words of JSON."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case _Object():
            return "an object"
        case list():
            return "a list"
        case _:
            return f"a {type(value).__name__}"


def check_encoding(name: str) -> str:
    """Return the name of an encoding.

    Raises:
        ValueError: Python knows no text encoding of this name.
    """
    try:
        "".encode(name)
    except LookupError:
        raise ValueError(f"{name!r} is no encoding; use utf-8, cp1252, latin-1 or utf-16, for instance") from None
    return name


def _wrong_count(column: str, count: int) -> str:
    return f"two columns are called {column!r}; rename one" if count else f"no column {column!r}"


def _not_in(form: Format) -> str:
    if not _is_utf_8(form):
        return f"not in the encoding {form.encoding}; {form.option}utf-8 is the usual one"
    return f"not UTF-8; save the file as UTF-8, or read it with {form.option}cp1252 if it is of Excel on Windows"


def _is_utf_8(form: Format) -> bool:
    return codecs.lookup(form.encoding).name in (UTF_8, "utf-8-sig")


def _is_wide(form: Format) -> bool:
    """Return whether a line break has more than one byte."""
    return len("\n".encode(form.encoding)) > 1


@contextmanager
def _text(path: Path, form: Format, *, newline: str | None = None) -> Iterator[IO[str]]:
    """Open a file as text, without a byte order mark; name the first line that is in another encoding."""
    _refuse_wide(path, form)
    with path.open(encoding="utf-8-sig" if _is_utf_8(form) else form.encoding, newline=newline) as file:
        try:
            yield file
        except UnicodeDecodeError:
            raise BadData(f"{path.name}{_first_undecodable(path, form)}: {_not_in(form)}") from None


def _encoded_lines(path: Path, form: Format) -> Iterator[tuple[int, bytes | str]]:
    """Yield lines with their numbers, as bytes where each line can be decoded for itself."""
    lines: Iterable[bytes | str]
    if _is_wide(form):
        with _text(path, form) as lines:
            yield from enumerate(lines, 1)
        return
    _refuse_wide(path, form)
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def _refuse_wide(path: Path, form: Format) -> None:
    with path.open("rb") as file:
        if _is_utf_8(form) and file.read(2) in WIDE_MARKS:
            raise BadData(f"{path.name}, line 1: not UTF-8 but UTF-16; save it as UTF-8, or read it with {form.option}utf-16")


def _first_undecodable(path: Path, form: Format) -> str:
    if not _is_wide(form):
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    line.decode(form.encoding)
                except UnicodeDecodeError:
                    return f", line {number}"
    return ""
