"""Markdown tables of the benchmarks: one function writes them all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.aggregator.report import Figures, table
from benchmarks.lanes import __main__ as lanes
from benchmarks.paper.formatting import one_decimal, percent, whole
from benchmarks.paper.summary import Spread
from benchmarks.replicas import report
from benchmarks.tables import Table, grid

DOCS = Path("docs")
RESULTS = Path("benchmarks/results")


def kept(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return found


def test_words_stand_to_the_left_and_figures_to_the_right() -> None:
    lines = ["| way | ms |", "| --- | ---: |", "| ours | 3 |", "| theirs | 4.5 |"]
    assert grid(["way", "ms"], [["ours", 3], ["theirs", "4.5"]], ["way"]).splitlines() == lines
    told = Table("Times", ["way", "ms"], [["ours", "3"]], note="Of one.", wordy=["way"]).markdown().splitlines()
    assert told == ["### Times", "", "Of one.", "", *lines[:3]]


def test_figures_have_words() -> None:
    spread = Spread(0.86, 0.008, 3)
    assert (percent(spread), percent(Spread(0.86, None, 1)), percent(None)) == ("86.0 ± 0.8", "86.0", "–")
    assert (one_decimal(Spread(5.44, None, 1)), whole(1132.4), whole(None)) == ("5.4", "1,132", "–")


def test_the_tables_of_replicas_are_those_of_their_page() -> None:
    page = (DOCS / "explanation-scaling.md").read_text(encoding="utf-8")
    assert f"<!-- figures -->\n{report.tables(kept('replicas.json'))}\n<!-- end of figures -->" in page


def test_lanes_have_a_line_for_every_pass_and_place_in_the_queue() -> None:
    found = kept("lanes.json")
    row = found["passes"][0]
    first = lanes._table(found["passes"]).splitlines()
    parts = "traced" if row["traced"] else "operator by operator"
    assert len(first) == 2 + len(found["passes"])
    assert first[2].startswith(f"| {row['texts']} | {parts} | {row['alone_ms']:.0f} | ")
    assert first[1] == "| ---: | --- | ---: | ---: | ---: |"
    injected = lanes._injected_table(found["injected"]).splitlines()
    assert f"| {', '.join(f'{value:.3f}' for value in found['injected'][0]['cpu'])} | " in injected[2]
    queue = lanes._queue_table(found["queue"]).splitlines()
    assert queue[0].startswith("Simulated: ")
    assert len(queue) == 4 + len(found["queue"])


def test_what_a_system_does_not_tell_is_left_empty() -> None:
    one = Figures("flower", "6 kB", 1000, 1.5, 1500.0, update_p50_ms=3.0, update_p99_ms=40.0)
    assert table([one]).splitlines()[2] == "| flower | 6 kB | 1,000 | 1.5 | 1.5e+03 |  | 3.0 / 40.0 |  |  |  |"
