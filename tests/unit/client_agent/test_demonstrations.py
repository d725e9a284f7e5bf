"""A data file is read completely or refused with the line, and the split leaks no text."""

from __future__ import annotations

import traceback
from contextlib import suppress
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifed.cli.texts import count_texts, read_texts
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
        ("a.csv", "text,label\ncafé,positive\n", "a.csv, line 2: not UTF-8; .*DATA_ENCODING=cp1252"),
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
    split = split_holdout(rows(100), holdout=0.2, max_holdout=100)
    reverse = split_holdout(rows(100)[::-1], holdout=0.2, max_holdout=100)
    assert set(split.holdout) == set(reverse.holdout)


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


def test_all_bad_rows_are_described_at_once_by_count_line_and_kind(tmp_path: Path) -> None:
    rows = ["good,positive", "poor,Negative", "fine,positve", " ,positive", "odd,JANE", "bad,Negative", "a,b,c"]
    with pytest.raises(BadData) as refusal:
        read_data_file(file_with(tmp_path, "a.csv", "\n".join(["text,label", *rows]) + "\n"), LABELS, Columns())
    detail = refusal.value.detail
    assert "a.csv: 6 of 7 rows cannot be used" in detail
    assert "lines 3, 7: the label is none of 'negative', 'positive', and differs from 'negative' in capitals only" in detail
    assert "line 4: the label is none of 'negative', 'positive'; the nearest, 'positive', is the same to 93%" in detail
    assert "line 5: the text in column 'text' is empty" in detail
    assert "line 6: the label is none of 'negative', 'positive', nor like one of them; LABEL_MAP" in detail
    assert "line 8: expected 2 columns" in detail
    assert "JANE" not in detail


def test_a_refusal_stays_short_however_many_rows_are_bad(tmp_path: Path) -> None:
    content = "text,label\n" + "".join(f"text,{'positive'[:-2]}{number}\n" for number in range(5000))
    with pytest.raises(BadData, match="5000 of 5000 rows") as refusal:
        read_data_file(file_with(tmp_path, "a.csv", content), LABELS, Columns())
    assert len(refusal.value.detail) < 3000


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label,text\ngood,positive,OTHER\n"),
        ("a.csv", "text,label,label\ngood,positive,negative\n"),
        ("a.jsonl", '{"text": "good", "label": "positive", "label": "negative"}\n'),
    ],
)
def test_two_columns_of_one_name_are_refused_by_agent_and_command_line(tmp_path: Path, name: str, content: str) -> None:
    path = file_with(tmp_path, name, content)
    column = "text" if "OTHER" in content else "label"
    for read in (lambda: read_data_file(path, LABELS, Columns()), lambda: list(read_texts(path, column))):
        with pytest.raises(BadData, match=f"two columns are called '{column}'"):
            read()


def test_two_parquet_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pyarrow.Table.from_arrays(
        [pyarrow.array(["good"]), pyarrow.array(["a"]), pyarrow.array(["b"])], ["text", "label", "label"]
    )
    pyarrow.parquet.write_table(table, path)
    with pytest.raises(BadData, match="two columns are called 'label'"):
        read_data_file(path, LABELS, Columns())


def test_columns_of_one_name_that_are_not_read_do_not_matter(tmp_path: Path) -> None:
    path = file_with(tmp_path, "a.csv", "text,label,note,note\ngood,positive,x,y\n")
    assert read_data_file(path, LABELS, Columns()) == [LabelledText("good", 1)]


def test_jsonl_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = file_with(tmp_path, "a.jsonl", '\ufeff{"text": "good", "label": "positive"}\n')
    assert read_data_file(path, LABELS, Columns()) == [LabelledText("good", 1)]
    assert list(read_texts(path, "text")) == ["good"]


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_a_csv_with_another_delimiter_is_read(tmp_path: Path, delimiter: str) -> None:
    content = f'id{delimiter}"text"{delimiter}label\n1{delimiter}"so, so{delimiter} fine"{delimiter}positive\n'
    path = file_with(tmp_path, "a.csv", content)
    assert read_data_file(path, LABELS, Columns()) == [LabelledText(f"so, so{delimiter} fine", 1)]
    assert (list(read_texts(path, "text")), count_texts(path)) == ([f"so, so{delimiter} fine"], 1)


@pytest.mark.parametrize(
    ("encoding", "name"), [("cp1252", "a.csv"), ("latin-1", "a.jsonl"), ("utf-16", "a.csv"), ("utf-16", "a.jsonl")]
)
def test_a_file_is_read_in_the_encoding_of_the_setting_that_its_refusal_names(tmp_path: Path, encoding: str, name: str) -> None:
    content = "text,label\ncafé,positive\n" if name == "a.csv" else '{"text": "café", "label": "positive"}\n'
    path = file_with(tmp_path, name, content, encoding)
    with pytest.raises(
        BadData, match=rf"a\.\w+, line [12]: not UTF-8.*DATA_ENCODING={'utf-16' if encoding == 'utf-16' else 'cp1252'}"
    ):
        read_data_file(path, LABELS, Columns())
    assert read_data_file(path, LABELS, Columns(encoding=encoding)) == [LabelledText("café", 1)]


def test_a_missing_column_is_described_by_the_delimiter_and_the_number_of_columns(tmp_path: Path) -> None:
    path = file_with(tmp_path, "a.csv", "JANE;Text;label\n1;good;positive\n")
    with pytest.raises(BadData, match="line 1: no column 'text' in the heading, which has 3 columns with a semicolon") as refusal:
        read_data_file(path, LABELS, Columns())
    assert "column 2 differs from it in capitals or spaces" in refusal.value.detail
    assert "JANE" not in refusal.value.detail


@pytest.mark.parametrize("values", [[True, False], [1, 0], [1.0, 0.0], ["1.0", "0.0"], ["True", "false"]], ids=str)
def test_labels_that_are_no_strings_match_what_a_person_writes(tmp_path: Path, values: list[object]) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["fine", "poor"], "label": values}), path)
    keys = ("true", "False") if str(values[0]).casefold() == "true" else ("1", "0")
    columns = Columns(label_map=dict(zip(keys, ("positive", "negative"), strict=True)))
    assert [example.label for example in read_data_file(path, LABELS, columns)] == [1, 0]


def test_labels_that_differ_only_in_how_a_number_is_written_match_exactly(tmp_path: Path) -> None:
    path = file_with(tmp_path, "a.jsonl", '{"text": "a", "label": "1.0"}\n{"text": "b", "label": "01"}\n')
    assert [example.label for example in read_data_file(path, ("1", "1.0", "01"), Columns())] == [1, 2]


PRIVATE = 1_700_000_000_000_000_001


def test_a_column_that_is_ignored_cannot_stop_the_agent(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    times = pyarrow.array([PRIVATE], pyarrow.timestamp("ns"))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["good"], "label": ["positive"], "time": times}), path)
    assert read_data_file(path, LABELS, Columns()) == [LabelledText("good", 1)]


@pytest.mark.parametrize("kind", ["unreadable label", "text that is no UTF-8", "cut off"])
def test_an_exception_at_the_private_data_becomes_a_refusal_without_a_value_or_cause(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.parquet"
    texts, labels = pyarrow.array(["good"]), pyarrow.array([PRIVATE], pyarrow.timestamp("ns"))
    if kind == "text that is no UTF-8":
        texts, labels = pyarrow.array([b"\xff JANE"]).view(pyarrow.string()), pyarrow.array(["positive"])
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": labels}), path)
    if kind == "cut off":
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BadData, match=r"a\.parquet") as refusal:
        read_data_file(path, LABELS, Columns())
    shown = "".join(traceback.format_exception(refusal.value))
    assert not any(secret in shown for secret in (str(PRIVATE), "JANE", "ArrowInvalid:", "ValueError"))
