"""The convergence study: every setting runs, tables and plots show the results, and an interrupted run resumes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.convergence import __main__ as command
from benchmarks.convergence.plots import draw
from benchmarks.convergence.report import collect, late_swing, markdown
from benchmarks.convergence.runner import run_setting
from benchmarks.convergence.settings import BASE, Plan, Setting, all_settings
from benchmarks.federated.federation import Federation
from benchmarks.tests.test_federated import DATASET
from ifed.modeling.language_model import LanguageModel
from testing.random_models import TEXTS, build, examples

PLAN = Plan(clients=2, rounds=2, local_steps=2, batch_size=4, training=80, test=16)
FITTING = [cell for cell in all_settings() if cell.groups is None or 32 % cell.groups == 0]


@pytest.mark.parametrize("cell", FITTING, ids=[cell.name for cell in FITTING])
def test_every_setting_runs_its_rounds_and_measures_each_version(cell: Setting) -> None:
    federation = Federation(build("llama"), DATASET, [examples(20), examples(24)], examples(8), cell.layers)
    messages: list[str] = []
    result = run_setting(federation, cell, PLAN, messages.append)
    rounds = 4 if cell.name == "gradient-fedadam" else cell.policy_for(PLAN).rounds
    assert [row["round"] for row in result["rows"]] == list(range(0, rounds + 1, cell.rounds_between_evaluations(PLAN)))
    assert result["groups"] == (cell.groups or 32)
    assert len(messages) == len(result["rows"]) - 1
    up = [row["bytes_up"] for row in result["rows"]]
    assert up == sorted(up)
    assert all(0 <= row[f"accuracy_{way}"] <= 1 for row in result["rows"] for way in ("without_prior", "prior_matched"))


def test_every_algorithm_group_count_and_choice_of_layers_is_a_setting_once() -> None:
    names = [cell.name for cell in all_settings()]
    assert len(set(names)) == len(names)
    assert names[0] == BASE
    kinds = {"fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "gradient-fedadam", "fedlalr", "scaffold", "published"}
    assert kinds <= set(names)
    assert {cell.groups for cell in all_settings()} == {1, 4, 16, 64, None}
    assert {str(cell.layers) for cell in all_settings()} == {"all", "upper_half", "upper_third"}


def test_the_late_swing_is_the_largest_late_change() -> None:
    rows = [{"accuracy": value} for value in (0.5, 0.9, 0.80, 0.84, 0.83)]
    assert late_swing(rows) == pytest.approx(0.04)


def row(number: int, accuracy: float) -> dict[str, Any]:
    return {
        "round": number,
        "accuracy": accuracy,
        "macro_f1": accuracy,
        "accuracy_without_prior": accuracy - 0.1,
        "bytes_up": 100.0 * (number + 1),
        "bytes_down": 100.0 * (number + 1),
    }


def test_tables_and_plots_show_the_results(tmp_path: Path) -> None:
    shown = [cell for cell in all_settings() if cell.name in (BASE, "fedavg", "groups-4")]
    runs = [
        {
            "cell": cell.name,
            "axis": cell.axis,
            "title": cell.title,
            "data": "subj",
            "rows": [row(0, 0.6), row(1, 0.7), row(2, 0.912)],
            "steps": [0, 2, 4],
        }
        for cell in shown
    ]
    text = markdown({"runs": runs})
    assert "| SUBJ | FedAvg | 60.0 % | 91.2 % | 91.2 % | 21.2 | 81.2 % | 21.2 | – | – | 91.2 | 100 |" in text
    assert text.count("FedAvg, logit adjustment") == 2
    drawn = [path.name for path in draw({"runs": runs}, tmp_path)]
    assert drawn == [f"convergence-{axis}.{kind}" for axis in ("algorithm", "groups") for kind in ("png", "svg")]
    assert (tmp_path / drawn[0]).read_bytes().startswith(b"\x89PNG")


def folder_of_texts(folder: Path) -> Path:
    for part, count in (("train", 80), ("test", 16)):
        rows = [{"text": TEXTS[at % len(TEXTS)], "label": ("objective", "subjective")[at % 2]} for at in range(count)]
        (folder / f"subj.{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def start(monkeypatch: pytest.MonkeyPatch, data: Path, *more: str) -> None:
    sizes = ["--clients", "2", "--rounds", "2", "--local-steps", "2", "--batch-size", "4", "--training", "80", "--test", "16"]
    arguments = ["--data", str(data), "--out", str(data), "--sources", "subj", *sizes, *more]
    monkeypatch.setattr(sys, "argv", ["benchmarks.convergence", *arguments])
    command.main()


def test_an_interrupted_run_resumes_with_the_missing_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded: list[str] = []

    def small(name: str, **_: object) -> LanguageModel:
        loaded.append(name)
        return build("llama")

    monkeypatch.setattr(command, "load", small)
    data = folder_of_texts(tmp_path)
    start(monkeypatch, data, "--cells", BASE)
    first = (data / "cells" / "subj" / f"{BASE}.json").read_bytes()
    start(monkeypatch, data, "--cells", BASE, "fedavg")
    assert (data / "cells" / "subj" / f"{BASE}.json").read_bytes() == first
    assert [(run["cell"], run["steps"]) for run in collect(data, PLAN)["runs"]] == [(BASE, [0, 2, 4]), ("fedavg", [0, 2, 4])]
    start(monkeypatch, data, "--cells", BASE, "fedavg", "--report")
    written = (data / "tables.md").read_text(encoding="utf-8")
    assert written.startswith(f"Generated by `python -m benchmarks.convergence --report --out {data}`; do not edit.")
    assert "](convergence-algorithm.png)" in written
    assert len(loaded) == 2
    assert capsys.readouterr().out.count("### The algorithm") == 3
    assert not collect(data, Plan())["runs"]


def test_an_unknown_cell_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="no such cells: fedsgd; there are fedavg-adjusted"):
        start(monkeypatch, tmp_path, "--cells", "fedsgd")
