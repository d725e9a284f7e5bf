"""Texts come out of every format in order, and a bad row is named."""

from __future__ import annotations

import csv
import json
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ifed.cli.classify import _Rows, _SentTexts, _whole_lines
from ifed.cli.texts import count_texts, read_texts
from ifed.errors import BadData

TEXTS = ["one", "two, with a comma", "three\nlines", "four ✓"]


def written(folder: Path, kind: str) -> Path:
    path = folder / f"texts.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps({"words": text}) + "\n" for text in TEXTS))
    elif kind == "csv":
        rows = ['"' + text + '"' for text in TEXTS]
        path.write_text("id,words\n" + "".join(f"{n},{row}\n" for n, row in enumerate(rows)))
    else:
        pq.write_table(pa.table({"words": TEXTS}), path)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_column_is_read_in_order(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path, kind)
    assert list(read_texts(path, "words")) == TEXTS
    assert count_texts(path) == 4
    with pytest.raises(BadData, match="'text'"):
        list(read_texts(path, "text"))


def test_any_other_file_has_a_text_on_each_line(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("one\n\ntwo\n")
    assert list(read_texts(path, "text")) == ["one", "two"]
    assert count_texts(path) == 2


def test_a_row_without_a_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "a"}\n{"text": 3}\n')
    with pytest.raises(BadData, match="line 2"):
        list(read_texts(path, "text"))


def test_a_torn_last_line_is_dropped_and_done_again(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    assert _whole_lines(path, "a") == (0, 0, None)
    whole = '{"row": 0, "text": "x", "model": "a"}\n{"row": 1, "text": "y", "model": "a"}\n'
    path.write_text(whole + '{"ro')
    assert _whole_lines(path, "a") == (2, 0, "y")
    assert path.read_text() == whole


@pytest.mark.parametrize(
    "content",
    ['{"row": 0, "model": "b"}\n', '{"row": 0, "model": "a@bare"}\n', "notes\n", '{"row": 0, "model": "a"}\nnotes', "[1]\n"],
)
def test_a_file_that_holds_something_else_is_left_alone(content: str, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(content)
    with pytest.raises(BadData, match="name another file"):
        _whole_lines(path, "a")
    assert path.read_text() == content


def test_only_the_same_texts_are_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text('{"row": 0, "text": "x", "model": "a"}\n{"row": 1, "text": "y", "model": "a"}\n')
    with ExitStack() as parts:
        rows = _Rows(parts, path, "a")
        assert list(rows.rest_of(iter(["x", "y", "z"]))) == ["z"]
        for others in (["x", "other", "z"], ["x"]):
            with pytest.raises(BadData, match="other texts"):
                rows.rest_of(iter(others))


def test_a_file_from_excel_is_read_and_one_that_is_not_utf_8_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "texts.CSV"
    path.write_text("text,id\nfünf,1\n", encoding="utf-8-sig")
    assert (list(read_texts(path, "text")), count_texts(path)) == (["fünf"], 1)
    path.write_text("text\nfünf\n", encoding="latin-1")
    for read in (lambda: list(read_texts(path, "text")), lambda: count_texts(path)):
        with pytest.raises(
            BadData, match=r"texts.CSV, line 2: not UTF-8; save the file as UTF-8, or read it with --encoding cp1252"
        ):
            read()


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ('"a quote that nothing closes\nanother text\n', "unexpected end of data"),
        ('"a stray" quote\n', r"',' expected after"),
        ("x" * 10_000_001 + "\n", "field larger than field limit"),
    ],
)
def test_a_csv_of_which_one_would_have_to_guess_is_refused(rows: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    path.write_text(f"text\n{rows}")
    for read in (lambda: list(read_texts(path, "text")), lambda: count_texts(path)):
        with pytest.raises(BadData, match=f"texts.csv, line 2: cannot be read as CSV: {reason}"):
            read()


def test_a_text_of_any_length_is_read_from_csv(tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    path.write_text("text\n" + "x" * 140_000 + "\n")
    before = csv.field_size_limit(131_072)  # as a process begins; it is one number for all of it
    try:
        assert (list(read_texts(path, "text")), count_texts(path)) == (["x" * 140_000], 1)
    finally:
        csv.field_size_limit(before)


def test_texts_are_kept_until_their_answer_is_there() -> None:
    texts = _SentTexts(["a", "b", "c"])
    assert [next(texts), next(texts)] == ["a", "b"]
    assert texts.next_text() == "a"
    assert next(texts) == "c"
    assert [texts.next_text(), texts.next_text()] == ["b", "c"]
