"""Texts come out of every format in order, and a bad row is named."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ifed.cli.classify import _Remembering, _whole_lines
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
    with pytest.raises(BadData, match="row 2"):
        list(read_texts(path, "text"))


def test_a_torn_last_line_is_dropped_and_done_again(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    assert _whole_lines(path, task="a") == 0
    whole = '{"row": 0, "task": "a"}\n{"row": 1, "task": "a"}\n'
    path.write_text(whole + '{"ro')
    assert _whole_lines(path, task="a") == 2
    assert path.read_text() == whole


@pytest.mark.parametrize("content", ['{"row": 0, "task": "b"}\n', "notes\n", '{"row": 0, "task": "a"}\nnotes', "[1]\n"])
def test_a_file_that_holds_something_else_is_left_alone(content: str, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(content)
    with pytest.raises(BadData, match="name another file"):
        _whole_lines(path, task="a")
    assert path.read_text() == content


def test_texts_are_kept_until_their_answer_is_there() -> None:
    texts = _Remembering(["a", "b", "c"])
    assert [next(texts), next(texts)] == ["a", "b"]
    assert texts.next_text() == "a"
    assert next(texts) == "c"
    assert [texts.next_text(), texts.next_text()] == ["b", "c"]
