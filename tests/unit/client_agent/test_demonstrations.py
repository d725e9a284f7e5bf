"""A data file is read completely or refused with the line, and the split leaks no text."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifed.errors import BadData
from ifed.messages.texts import LabelledText
from services.client_agent.demonstrations import Columns, read_data_file, split_holdout

LABELS = ("negative", "positive")


def file_with(folder: Path, name: str, content: str, encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_text(content, encoding=encoding, newline="", errors="surrogatepass")
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"text": "so, so\\nand so", "label": "negative", "id": 3}\n\n{"text": "fine ☕", "label": "positive"}\n'),
        ("a.csv", 'text,label\n"so, so\nand so",negative\nfine ☕,positive\n'),
        ("a.csv", '\ufefftext,label\n"so, so\nand so",negative\nfine ☕,positive\n'),
    ],
    ids=["jsonl", "csv", "csv with byte order mark"],
)
def test_a_file_is_read_in_its_order(tmp_path: Path, name: str, content: str) -> None:
    examples = read_data_file(file_with(tmp_path, name, content), LABELS, Columns())
    assert examples == [LabelledText("so, so\nand so", 0), LabelledText("fine ☕", 1)]


def test_a_parquet_file_is_read_in_its_order(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["fine", "poor"], "label": ["positive", "negative"]}), path)
    assert read_data_file(path, LABELS, Columns()) == [LabelledText("fine", 1), LabelledText("poor", 0)]


def test_columns_and_labels_can_have_other_names(tmp_path: Path) -> None:
    path = file_with(tmp_path, "a.csv", "body,stars\nfine,1\npoor,0\n")
    examples = read_data_file(path, LABELS, Columns("body", "stars", {"1": "positive", "0": "negative"}))
    assert examples == [LabelledText("fine", 1), LabelledText("poor", 0)]


def test_a_long_cell_is_read_completely(tmp_path: Path) -> None:
    path = file_with(tmp_path, "a.csv", f"text,label\n{'word ' * 50_000},positive\n")
    (example,) = read_data_file(path, LABELS, Columns())
    assert len(example.text) == 250_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a", "label": "positive"}\n{"text": "b"}\n', "line 2: no column 'label'"),
        ("a.jsonl", '{"text": "a", "label": null}\n', "line 1: column 'label' is empty"),
        (
            "a.jsonl",
            '{"text": "a", "label": "positive"}\n\n{"text": "b", "label": "neutral"}\n',
            "line 3: the label is none of 'negative', 'positive'",
        ),
        ("a.jsonl", '{"text": "a", "label": "positive"}\n{text}\n', "line 2: not a JSON object"),
        ("a.jsonl", "[" * 200_000, "line 1: not a JSON object"),
        ("a.jsonl", "[1, 2]\n", "line 1: not a JSON object but a list"),
        ("a.jsonl", '{"text": "  ", "label": "positive"}\n', "line 1: the text in column 'text' is empty"),
        ("a.jsonl", '{"text": 7, "label": "positive"}\n', "line 1: the text in column 'text' is empty or not a string"),
        ("a.jsonl", '{"text": "\\ud800", "label": "positive"}\n', "line 1: the text contains a lone surrogate"),
        ("a.jsonl", "", "contains no rows"),
        ("a.csv", "text,label\nfine,positive\nso, so,negative\n", "line 3: expected 2 columns"),
        ("a.csv", "text,label\nfine\n", "line 2: expected 2 columns"),
        ("a.csv", 'text,label\n"fine,positive\n', "unexpected end of data"),
        ("a.txt", "fine", "supported are .jsonl"),
        ("a.parquet", "no parquet", "cannot be read as Parquet"),
    ],
)
def test_a_bad_row_is_refused_by_file_and_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(BadData) as refusal:
        read_data_file(file_with(tmp_path, name, content), LABELS, Columns())
    assert message in refusal.value.detail
    assert name in refusal.value.detail


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\ncafé,positive\n", "a.csv, after line"),
        ("a.jsonl", '{"text": "café", "label": "positive"}\n', "a.jsonl, line 1: not UTF-8"),
    ],
)
def test_a_file_in_another_encoding_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(BadData, match=message):
        read_data_file(file_with(tmp_path, name, content, "latin-1"), LABELS, Columns())


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="is not a file"):
        read_data_file(tmp_path / "none.csv", LABELS, Columns())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "PATIENT JANE DOE,positive\nanother text,negative\n"),
        ("a.jsonl", '{"text": "positive", "label": "PATIENT JANE DOE"}\n'),
        ("a.jsonl", '{"PATIENT JANE DOE": 1}\n'),
    ],
)
def test_a_refusal_never_repeats_what_the_file_holds(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(BadData) as refusal:
        read_data_file(file_with(tmp_path, name, content), LABELS, Columns())
    assert "JANE" not in refusal.value.detail


def rows(count: int, more: str = "text") -> list[LabelledText[int]]:
    """Return examples of two labels with different texts."""
    return [LabelledText(f"{more} {number}", number % 2) for number in range(count)]


any_rows = st.lists(st.builds(LabelledText, st.text(min_size=1), st.integers(0, 40)), min_size=2)


@given(any_rows, st.floats(0.05, 0.9), st.integers(1, 20))
def test_a_split_loses_no_row_puts_no_text_on_both_sides_and_stays_below_its_maximum(
    examples: list[LabelledText[int]], share: float, max_holdout: int
) -> None:
    with suppress(BadData):
        split = split_holdout(examples, holdout=share, max_holdout=max_holdout)
        assert not {example.text for example in split.training} & {example.text for example in split.holdout}
        assert sorted(map(repr, split.training + split.holdout)) == sorted(map(repr, examples))
        assert len(split.holdout) <= max_holdout


def test_the_split_does_not_depend_on_the_order_of_the_file() -> None:
    one = split_holdout(rows(100), holdout=0.2, max_holdout=100)
    reverse = split_holdout(rows(100)[::-1], holdout=0.2, max_holdout=100)
    assert set(one.holdout) == set(reverse.holdout)


def test_the_same_share_of_every_label_is_held_out() -> None:
    examples = [LabelledText(f"text {number}", int(number < 90)) for number in range(100)]
    holdout = split_holdout(examples, holdout=0.2, max_holdout=100).holdout
    assert [sum(example.label == label for example in holdout) for label in (0, 1)] == [2, 18]


def test_examples_beyond_the_maximum_are_trained_on() -> None:
    split = split_holdout(rows(1000), holdout=0.2, max_holdout=50)
    assert (len(split.holdout), len(split.training)) == (50, 950)


def test_a_learned_example_is_never_held_out_later() -> None:
    learned = set(split_holdout(rows(40), holdout=0.2, max_holdout=100).training)
    grown = split_holdout(rows(40) + rows(200, "more"), holdout=0.2, max_holdout=100, learned=lambda example: example in learned)
    assert not set(grown.holdout) & learned
    assert len(grown.holdout) == 48


def test_rows_of_a_single_text_are_too_few() -> None:
    with pytest.raises(BadData, match="too few"):
        split_holdout([LabelledText("a", 0), LabelledText("a", 0)], holdout=0.5, max_holdout=10)


def test_label_counts_are_those_of_the_training_examples() -> None:
    split = split_holdout(rows(10), holdout=0.2, max_holdout=10)
    assert split.label_counts(("no", "yes", "never")) == {"no": 4, "yes": 4, "never": 0}
