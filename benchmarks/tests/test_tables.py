"""Markdown tables of the benchmarks, and the stored tables of the stored results."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.aggregator import report as aggregator
from benchmarks.convergence import report as convergence
from benchmarks.convergence.settings import Plan as ConvergencePlan
from benchmarks.lanes import __main__ as lanes
from benchmarks.modeling import report as modeling
from benchmarks.paper import report as paper
from benchmarks.paper.__main__ import MODEL
from benchmarks.paper.formatting import integer, one_decimal, percent
from benchmarks.paper.methods import RATES, SETTINGS, Plan
from benchmarks.paper.store import CellStore
from benchmarks.paper.summary import Spread
from benchmarks.replicas import report as replicas
from benchmarks.serving import report as serving
from benchmarks.tables import Table, markdown_table
from benchmarks.tasks import __main__ as tasks
from benchmarks.tests.conftest import DEFAULT_SETTINGS

RESULTS = Path("benchmarks/results")


def test_text_is_aligned_to_the_left_and_numbers_to_the_right() -> None:
    lines = ["| way | ms |", "| --- | ---: |", "| ours | 3 |", "| theirs | 4.5 |"]
    assert markdown_table(["way", "ms"], [["ours", 3], ["theirs", "4.5"]], ["way"]).splitlines() == lines
    table = Table("Times", ["way", "ms"], [["ours", "3"]], note="Of one.", text_columns=["way"])
    assert table.markdown().splitlines() == ["### Times", "", "Of one.", "", *lines[:3]]


def test_numbers_are_rounded_and_missing_ones_are_dashes() -> None:
    spread = Spread(0.86, 0.008, 3)
    assert (percent(spread), percent(Spread(0.86, None, 1)), percent(None)) == ("86.0 ± 0.8", "86.0", "–")
    assert (one_decimal(Spread(5.44, None, 1)), integer(1132.4), integer(None)) == ("5.4", "1,132", "–")


@pytest.mark.parametrize(
    ("name", "markdown"),
    [
        ("aggregator", aggregator.markdown),
        ("lanes", lanes.markdown),
        ("modeling", modeling.markdown),
        ("replicas", replicas.markdown),
        ("serving", serving.markdown),
        ("serving-amx", serving.markdown),
        ("tasks", tasks.markdown),
    ],
)
def test_the_stored_tables_are_those_of_the_stored_results(name: str, markdown: Callable[[Mapping[str, Any]], str]) -> None:
    results = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    assert (RESULTS / f"{name}.md").read_text(encoding="utf-8").partition("\n\n")[2] == markdown(results) + "\n"


def test_the_stored_tables_of_the_convergence_study_are_those_of_its_cells() -> None:
    text = convergence.markdown(convergence.collect(RESULTS / "convergence", ConvergencePlan()))
    assert (RESULTS / "convergence/tables.md").read_text(encoding="utf-8").partition("\n\n")[2] == text + "\n"


@pytest.mark.parametrize(("folder", "rates"), [("paper", RATES), ("paper/unseen", (0.001,))])
def test_the_stored_tables_of_the_paper_are_those_of_its_cells(
    folder: str, rates: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for method, setting in DEFAULT_SETTINGS.items():
        monkeypatch.setitem(SETTINGS, method, setting)
    text = paper.markdown(CellStore(RESULTS / folder, Plan(), MODEL).collect(rates))
    assert (RESULTS / folder / "tables.md").read_text(encoding="utf-8").partition("\n\n")[2].startswith(text + "\n")


def test_values_a_system_does_not_measure_are_left_empty() -> None:
    result = aggregator.Result("flower", "6 kB", 1000, 1.5, 1500.0, update_p50_ms=3.0, update_p99_ms=40.0)
    assert aggregator.table([result]).splitlines()[2] == "| flower | 6 kB | 1,000 | 1.5 | 1.5e+03 |  | 3.0 / 40.0 |  |  |  |"
