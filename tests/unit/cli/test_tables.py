"""Tables fit the terminal, with the longest names that are allowed, and leave nothing out elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ifed.cli.task_tables import confusion_table, members_table
from ifed.messages.evaluations import EvaluationDetails
from ifed.messages.rounds import LabelEvaluation
from tests.unit.cli.sample_tables import CLIENTS, LABELS, TASK, WIDTHS, shown, snapshot, tables, task

TABLES = tables()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", TABLES)
def test_a_table_looks_as_it_did_when_somebody_last_looked(name: str, width: int) -> None:
    lines = shown(TABLES[name], width)
    assert lines == snapshot(name, width).read_text(encoding="utf-8").splitlines(), (
        "if this is meant, write the snapshots anew with `python -m tests.unit.cli.sample_tables` and look at each"
    )


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", TABLES)
def test_a_table_fits_its_terminal_and_cuts_no_cell(name: str, width: int) -> None:
    lines = shown(TABLES[name], width)
    assert max(map(len, lines)) <= width
    assert name == "classify" or not any("…" in line.replace(" … ", "") for line in lines), "an open round has … for its seconds"


def test_a_name_that_wraps_is_whole() -> None:
    cells = [line[:18].strip() for line in shown(TABLES["client-list"], 80)[3:]]
    assert "".join(cells).startswith(CLIENTS[0])


def test_a_table_in_a_pipe_has_every_column_and_one_line_for_each_row() -> None:
    pipe = Console(file=io.StringIO(), force_terminal=False)
    pipe.print(members_table(task(TASK)), crop=False)
    assert isinstance(pipe.file, io.StringIO)
    rows = [line for line in pipe.file.getvalue().splitlines() if line.strip()][2:]
    assert [row.split()[0] for row in rows] == CLIENTS
    assert all(f"7 {LABELS[2]}" in row and "2026-03-01 12:00:00" in row for row in rows)


def test_many_labels_are_counted_and_not_listed() -> None:
    member = task("b").members[0].model_copy(update={"label_counts": {f"label-{n}": n for n in range(1, 1001)}})
    lines = shown(members_table(task("b").model_copy(update={"members": [member]})), 80)
    assert "1000 labels, 1 to 1000" in " ".join(lines)
    assert len(lines) < 12


def test_of_many_labels_only_the_most_frequent_confusions_are_shown() -> None:
    names = [f"label-{n}" for n in range(9)]
    evaluation = EvaluationDetails(
        version=1,
        accuracy=0.5,
        macro_f1=0.5,
        examples=100,
        round=2,
        labels=[LabelEvaluation(label=name, texts=1, predicted=1, precision=1, recall=1) for name in names],
        confusion=[[10 * row + column for column in range(9)] for row in range(9)],
        clients=[],
    )
    rows = [line.split() for line in shown(confusion_table(evaluation), 80)[3:] if line]
    assert rows[:2] == [["label-8", "label-7", "87"], ["label-8", "label-6", "86"]]
    assert len(rows) == 20
