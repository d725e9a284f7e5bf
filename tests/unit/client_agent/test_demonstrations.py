"""Private files are read whole or refused by line, and split without leaking a text."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifed.errors import BadData
from services.client_agent.demonstrations import Columns, Demonstration, read, split

LABELS = ("negative", "positive")


def written(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def test_jsonl_is_read_in_its_order(tmp_path: Path) -> None:
    file = written(
        tmp_path, "a.jsonl", '{"text": "fine ☕", "label": "positive"}\n\n{"text": "poor", "label": "negative", "id": 3}\n'
    )
    assert read(file, LABELS, Columns()) == [Demonstration("fine ☕", 1), Demonstration("poor", 0)]


def test_csv_keeps_quoted_commas_and_line_breaks(tmp_path: Path) -> None:
    file = written(tmp_path, "a.csv", 'text,label\n"so, so\nand so",negative\nfine,positive\n')
    assert read(file, LABELS, Columns()) == [Demonstration("so, so\nand so", 0), Demonstration("fine", 1)]


def test_csv_from_a_spreadsheet_begins_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes("﻿text,label\nfine,positive\n".encode())
    assert read(file, LABELS, Columns()) == [Demonstration("fine", 1)]


def test_parquet_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["fine", "poor"], "label": ["positive", "negative"]}), file)
    assert read(file, LABELS, Columns()) == [Demonstration("fine", 1), Demonstration("poor", 0)]


def test_columns_and_labels_can_have_other_names(tmp_path: Path) -> None:
    file = written(tmp_path, "a.csv", "body,stars\nfine,1\npoor,0\n")
    found = read(file, LABELS, Columns("body", "stars", {"1": "positive", "0": "negative"}))
    assert found == [Demonstration("fine", 1), Demonstration("poor", 0)]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"text": "a", "label": "positive"}\n{"text": "b"}\n', "line 2: no column 'label'"),
        (
            "a.jsonl",
            '{"text": "a", "label": "positive"}\n\n{"text": "b", "label": "neutral"}\n',
            "line 3: the label is none of 'negative', 'positive'",
        ),
        ("a.jsonl", '{"text": "a", "label": "positive"}\n{text}\n', "line 2: not a JSON object"),
        ("a.jsonl", "[1, 2]\n", "line 1: a list where a JSON object should be"),
        ("a.jsonl", '{"text": "  ", "label": "positive"}\n', "line 1: the text in column 'text' is empty"),
        ("a.jsonl", '{"text": 7, "label": "positive"}\n', "line 1: the text in column 'text' is empty or no text"),
        ("a.jsonl", "", "holds no rows"),
        ("a.csv", "text,label\nfine,positive\nso, so,negative\n", "line 3: 2 columns were expected"),
        ("a.csv", "text,label\nfine\n", "line 2: 2 columns were expected"),
        ("a.csv", 'text,label\n"fine,positive\n', "unexpected end of data"),
        ("a.txt", "fine", "files end in .jsonl"),
        ("a.parquet", "no parquet", "is not a Parquet file"),
    ],
)
def test_a_bad_row_is_refused_by_its_line(tmp_path: Path, name: str, content: str, words: str) -> None:
    with pytest.raises(BadData) as refusal:
        read(written(tmp_path, name, content), LABELS, Columns())
    assert words in refusal.value.detail
    assert name in refusal.value.detail


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="is not a file"):
        read(tmp_path / "none.csv", LABELS, Columns())


def test_a_csv_in_another_encoding_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes("text,label\ncafé,positive\n".encode("latin-1"))
    with pytest.raises(BadData, match=r"a\.csv, after line"):
        read(file, LABELS, Columns())


def test_jsonl_in_another_encoding_is_refused_by_line(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(json.dumps({"text": "café", "label": "positive"}, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(BadData, match="line 1"):
        read(file, LABELS, Columns())


examples = st.lists(st.builds(Demonstration, st.text(min_size=1), st.integers(0, 3)), min_size=2)


@given(examples, st.floats(0.05, 0.9))
def test_no_text_stands_on_both_sides_and_none_is_lost(given_examples: list[Demonstration], share: float) -> None:
    try:
        parts = split(given_examples, holdout=share, max_holdout=1000)
    except BadData:
        return
    assert not {one.text for one in parts.training} & {one.text for one in parts.holdout}
    assert sorted(map(repr, parts.training + parts.holdout)) == sorted(map(repr, given_examples))


def test_the_split_does_not_depend_on_the_order_of_the_file() -> None:
    rows = [Demonstration(f"text {number}", number % 2) for number in range(100)]
    one, other = split(rows, holdout=0.2, max_holdout=100), split(rows[::-1], holdout=0.2, max_holdout=100)
    assert set(one.holdout) == set(other.holdout)


def test_every_label_is_held_out_in_its_share() -> None:
    rows = [Demonstration(f"text {number}", int(number < 90)) for number in range(100)]
    held = split(rows, holdout=0.2, max_holdout=100).holdout
    assert (sum(one.label for one in held), sum(1 - one.label for one in held)) == (18, 2)


def test_no_more_than_asked_are_held_out() -> None:
    rows = [Demonstration(f"text {number}", number % 2) for number in range(1000)]
    parts = split(rows, holdout=0.2, max_holdout=50)
    assert (len(parts.holdout), len(parts.training)) == (50, 950)


@given(st.lists(st.builds(Demonstration, st.text(min_size=1), st.integers(0, 40)), min_size=2), st.integers(1, 20))
def test_never_more_than_the_task_takes_are_held_out(rows: list[Demonstration], most: int) -> None:
    with suppress(BadData):
        assert len(split(rows, holdout=0.5, max_holdout=most).holdout) <= most


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "PATIENT JANE DOE,positive\nanother text,negative\n"),
        ("a.jsonl", '{"text": "positive", "label": "PATIENT JANE DOE"}\n'),
        ("a.jsonl", '{"PATIENT JANE DOE": 1}\n'),
    ],
)
def test_a_refusal_never_repeats_what_stands_in_the_file(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(BadData) as refusal:
        read(written(tmp_path, name, content), LABELS, Columns())
    assert "JANE" not in refusal.value.detail


def test_half_a_character_is_refused_by_line(tmp_path: Path) -> None:
    file = written(tmp_path, "a.jsonl", '{"text": "fine", "label": "positive"}\n{"text": "bad \\ud800", "label": "positive"}\n')
    with pytest.raises(BadData, match=r"line 2: the text holds half a character"):
        read(file, LABELS, Columns())


def test_json_nested_too_deeply_is_refused_by_line(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="line 1: not a JSON object"):
        read(written(tmp_path, "a.jsonl", "[" * 200_000), LABELS, Columns())


def test_a_long_cell_is_read_whole(tmp_path: Path) -> None:
    (found,) = read(written(tmp_path, "a.csv", f"text,label\n{'word ' * 50_000},positive\n"), LABELS, Columns())
    assert len(found.text) == 250_000


def test_one_text_alone_is_too_few() -> None:
    with pytest.raises(BadData, match="too few"):
        split([Demonstration("a", 0), Demonstration("a", 0)], holdout=0.5, max_holdout=10)


def test_label_counts_are_of_the_training_part() -> None:
    parts = split([Demonstration(f"text {number}", number % 2) for number in range(10)], holdout=0.2, max_holdout=10)
    assert parts.label_counts(("no", "yes", "never")) == {"no": 4, "yes": 4, "never": 0}
