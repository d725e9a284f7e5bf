"""What the paper's experiment makes of its cells: tables, figures, goals; and a run by the command line that goes on where it was."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.paper import __main__ as command
from benchmarks.paper.figures import draw, mean_by_round
from benchmarks.paper.methods import QUICK, SETTINGS, TITLES, Plan
from benchmarks.paper.report import tables
from benchmarks.paper.store import OtherRun, Store
from benchmarks.paper.summary import above_lora, bytes_until, goals, reached, seconds_until, target, times_fewer_in_all
from benchmarks.replicas.report import write_into
from tests.unit.benchmarks.test_convergence import folder_of_texts
from tests.unit.modeling.builders import build_model, build_tokenizer

RATES = (0.001, 0.01)


def row(number: int, accuracy: float, **more: float) -> dict[str, Any]:
    ways = {"accuracy_plain": accuracy - 0.1, "accuracy_prior_matched": accuracy}
    sizes = {"seconds": 2.0 if number else 0.0, "loss": 0.5, "body_up": 1000, "body_down": 2000}
    return {"round": number, "accuracy": accuracy, "macro_f1": accuracy, **ways, **sizes, **more}


def run(method: str, *accuracies: float, seed: int = 0, **more: Any) -> dict[str, Any]:
    rows = [row(number, one, local=0.5, **{"global": one}) for number, one in enumerate(accuracies)]
    return {"method": method, "seed": seed, "rows": rows, "context_seconds": 3.0, "kept_seconds": 1.0} | more


def wire(up: int) -> dict[str, Any]:
    both = {"up": up, "down": 10}
    parts = {"joining": {"up": 5, "down": 5}, "context": {"up": 40, "down": 50}, "round": both, "evaluation": {"up": 7, "down": 10}}
    return parts | {"bodies": {"update": up - 1}}


def found(ours: float = 0.93, lora: float = 0.92, body: int = 1700) -> dict[str, Any]:
    """One data set: everything of two seeds but the bare model."""
    runs: dict[str, Any] = {method: [run(method, 0.6, 0.7, 0.8, seed=seed) for seed in (0, 1)] for method in SETTINGS}
    runs["ours"] = [run("ours", 0.6, 0.9, ours - 0.01), run("ours", 0.6, 0.7, ours + 0.01, seed=1)]
    runs["lora"] = [{**run("lora", lora), "rows": [row(2, lora)], "rate": 0.01}]
    runs["zero-shot"], runs["icl"] = [row(0, 0.6) | {"method": "zero-shot"}], [{"method": "icl", "accuracy": 0.55, "macro_f1": 0.5}]
    del runs["icl"][0]["method"], runs["zero-shot"][0]["round"]
    counted = {method: wire(body + 1) for method in SETTINGS} | {"lora": {"round": {"up": 200_000, "down": 200_000}}}
    counted["lora"]["bodies"] = {"update": 199_000}
    sweep = [run("lora", lora, rate=rate) for rate in RATES]
    data = {"subj": {"runs": runs, "sweep": sweep, "rate": 0.01, "wire": counted}}
    machine = {"cpu": "a CPU", "amx": True, "cores": 2, "device": "cpu", "dtype": "float32", "torch": "2"}
    return {"plan": Plan().__dict__, "model": "tiny", "machines": [machine, machine | {"amx": False}], "data": data}


def test_the_accuracy_table_has_mean_and_deviation_beside_the_paper() -> None:
    text = tables(found())
    assert "| SUBJ | ours | 93.0 ± 1.4 | 93.0 ± 1.4 | 83.0 ± 1.4 | 93.0 ± 1.4 | 2 | – | – |" in text
    assert "| SUBJ | IFed-ICL as published | 80.0 ± 0.0 | 80.0 ± 0.0 | 70.0 ± 0.0 | 80.0 ± 0.0 | 2 | 91.2 | 90.67 |" in text
    assert "| SUBJ | local ICL | 55.0 | 50.0 | – | – | 1 | 70.0 | – |" in text
    for title in TITLES.values():
        assert f"| {title} |" in text
    assert "Measured on a CPU with AMX, 2 cores, on cpu in float32, torch 2; and on a CPU, 2 cores, on" in text


def test_seconds_and_bytes_add_up_to_the_row_that_reaches_the_target() -> None:
    one = found()["data"]["subj"]
    assert target(one) == pytest.approx(0.95 * 0.93)
    first, second = one["runs"]["ours"]
    assert (reached(first, 0.88), reached(second, 0.88), reached(first, 0.99)) == (1, 2, None)
    assert seconds_until(first) == [4.0, 6.0, 8.0]
    assert bytes_until(first, one["wire"]) == [100, 100 + 1711, 100 + 2 * 1711]
    assert bytes_until(first, None) is None
    assert bytes_until(one["runs"]["lora"][0], one["wire"]) == [800_000]
    assert "| SUBJ | ours | 4.0 | 2.0 | 8.0 | 88.3 | 2 of 2 | 7.0 | 2,666 |" in tables(found())
    assert "0 of 2 | – | – |" in tables(found())


def test_global_coefficients_stand_beside_local_ones() -> None:
    assert "| SUBJ | ours | 93.0 | 50.0 | 43.0 | 2 | – |" in tables(found())
    assert "| SUBJ | IFed-ICL as published | 80.0 | 50.0 | 30.0 | 2 | 26.05 |" in tables(found())


@pytest.mark.parametrize(
    ("changes", "met"),
    [
        ({}, [True, True, True, True, True]),
        ({"ours": 0.911}, [False, True, True, True, True]),
        ({"ours": 0.93, "lora": 0.951}, [True, False, True, True, True]),
        ({"body": 1801}, [True, True, True, True, False]),
        ({"body": 4000}, [True, True, False, False, False]),
    ],
)
def test_goals_are_held_against_the_paper_and_the_better_reading_of_lora(changes: dict[str, Any], met: list[bool]) -> None:
    assert [one.met for one in goals(found(**changes)) if TITLES["long"] not in one.words] == met


def test_against_lora_count_the_seeds_that_both_have() -> None:
    one = found(ours=0.95, lora=0.96)["data"]["subj"]
    assert above_lora(one, "ours", "accuracy_prior_matched") == pytest.approx(0.94 - 0.96)
    one["runs"]["lora"].append({**run("lora", 0.9, seed=1), "rate": 0.01})
    assert above_lora(one, "ours", "accuracy_prior_matched") == pytest.approx((0.94 - 0.96 + 0.96 - 0.9) / 2)
    one["runs"]["lora"] = [run("lora", 0.9, seed=7)]
    assert above_lora(one, "ours", "accuracy_plain") is None


def test_the_longer_calibration_is_held_against_the_same_goals() -> None:
    told = [one for one in goals(found()) if TITLES["long"] in one.words]
    assert [one.met for one in told] == [False, False, True, True]
    assert told[0].words == f"SUBJ, {TITLES['long']}: above the paper's 8B"


def test_bytes_are_compared_by_round_and_in_all() -> None:
    one = found()["data"]["subj"]
    assert times_fewer_in_all(one, "ours") == pytest.approx(800_000 / (100 + 2 * 1711 + 17))
    assert f"| {400_000 / 1711:,.0f} | {800_000 / 3539:,.0f} |" in tables(found())
    one["runs"]["ours"] = []
    assert times_fewer_in_all(one, "ours") is None


def test_another_model_has_a_folder_of_its_own() -> None:
    def folder(model: str, *, quick: bool) -> str:
        return str(command._folder(argparse.Namespace(model=model, quick=quick)))

    assert [folder("gemma-3-270m", quick=quick) for quick in (False, True)] == [".paper", ".paper-quick"]
    assert [folder("Qwen/Qwen2.5-7B", quick=quick) for quick in (False, True)] == [".paper-qwen2.5-7b", ".paper-qwen2.5-7b-quick"]


def test_what_was_not_measured_is_left_out_and_meets_no_goal() -> None:
    bare = found()
    one = bare["data"]["subj"]
    one["runs"] |= {"lora": [], "zero-shot": [], "long": []}
    one |= {"wire": None, "sweep": []}
    assert [goal.met for goal in goals(bare)] == [True, None]
    text = tables(bare)
    assert "| FedAvg-LoRA |" not in text
    assert "Bytes of one client" not in text
    assert tables({"plan": Plan().__dict__, "model": "tiny", "machines": [], "data": {}}).startswith("tiny; 10 clients")


def test_a_model_that_lora_does_not_fit_has_the_bytes_of_the_other_methods() -> None:
    bare = found()
    one = bare["data"]["subj"]
    one["runs"]["lora"], one["sweep"] = [], []
    del one["wire"]["lora"]
    assert "| SUBJ | ours | 5 | 5 | 40 | 50 | 1,701 | 10 | 7 | 10 | 1,700 | – | – |" in tables(bare)
    assert [goal.met for goal in goals(bare) if TITLES["long"] not in goal.words] == [True, None, None, None, True]


def test_figures_are_drawn_by_round_by_bytes_and_for_local_coefficients(tmp_path: Path) -> None:
    names = [path.name for path in draw(found(), tmp_path)]
    assert names == [f"paper-{name}.{kind}" for name in ("accuracy", "local") for kind in ("png", "svg")]
    assert (tmp_path / names[0]).read_bytes().startswith(b"\x89PNG")
    assert b"mean of local" not in (tmp_path / "paper-accuracy.svg").read_bytes()


def test_a_figure_means_over_the_rounds_that_all_seeds_have() -> None:
    runs = [run("lora", 0.5, 0.6, 0.7, 0.8), {**run("lora", 0.0), "rows": [row(1, 0.8), row(3, 1.0)]}]
    assert mean_by_round(runs, "accuracy") == pytest.approx({1: 70.0, 3: 90.0})


def test_the_tables_go_between_the_marks_of_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- figures -->\nold\n<!-- end of figures -->\nafter\n", encoding="utf-8")
    write_into(page, tables(found()))
    text = page.read_text(encoding="utf-8")
    assert "old" not in text
    assert text.startswith("before\n<!-- figures -->\ntiny; ")
    assert text.endswith("<!-- end of figures -->\nafter\n")


def test_a_cell_of_another_plan_model_or_setting_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path, QUICK, "tiny")
    store.keep("subj", "ours-0", run("ours", 0.5))
    store.keep("subj", "lora-0.001-0", run("lora", 0.5))
    store.keep("subj", "wire", {"ours": wire(10)})
    assert Store(tmp_path, QUICK, "tiny").has("subj", "ours-0")
    with pytest.raises(OtherRun, match="another plan and setting; name another folder"):
        Store(tmp_path, replace(QUICK, rounds=9), "tiny").has("subj", "ours-0")
    with pytest.raises(OtherRun, match="another model"):
        Store(tmp_path, QUICK, "large").has("subj", "ours-0")
    ours = SETTINGS["ours"]
    monkeypatch.setitem(SETTINGS, "ours", replace(ours, policy={"learning_rate": 0.03}))
    for name in ("ours-0", "lora-0.001-0", "wire"):
        with pytest.raises(OtherRun, match=f"{name}.json was made with another setting"):
            Store(tmp_path, QUICK, "tiny").has("subj", name)
    monkeypatch.setitem(SETTINGS, "ours", replace(ours, policy={"deadline_seconds": 60.0}))
    assert Store(tmp_path, QUICK, "tiny").has("subj", "ours-0")


def test_the_best_rate_is_known_once_all_were_tried(tmp_path: Path) -> None:
    store = Store(tmp_path, QUICK, "tiny")
    store.keep("subj", "lora-0.001-0", run("lora", 0.7))
    assert store.best_rate("subj", RATES) is None
    assert store.collect(RATES)["data"]["subj"]["runs"]["lora"] == []
    store.keep("subj", "lora-0.01-0", run("lora", 0.8, rate=0.01))
    store.keep("subj", "lora-0.01-1", run("lora", 0.9, seed=1))
    assert store.best_rate("subj", RATES) == 0.01
    assert [one["seed"] for one in store.collect(RATES)["data"]["subj"]["runs"]["lora"]] == [0, 1]


def start(monkeypatch: pytest.MonkeyPatch, data: Path, model: Path, *more: str) -> None:
    """The very command, on a small Qwen 2 from a folder, as a larger one would come from a hub."""
    sizes = [
        "--clients",
        "2",
        "--rounds",
        "2",
        "--local-steps",
        "1",
        "--batch-size",
        "2",
        "--training",
        "64",
        "--test",
        "8",
        "--shots",
        "1",
        "--few",
        "4",
        "--lora-rank",
        "2",
    ]
    given = ["--data", str(data), "--out", str(data / "out"), "--sources", "subj", "--lora-rates", "0.001", "0.01", *sizes]
    monkeypatch.setattr(sys, "argv", ["benchmarks.paper", *given, "--model", str(model), "--device", "cpu", *more])
    command.main()


def test_the_command_runs_every_method_on_a_qwen2_from_a_folder_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "qwen2"
    build_model("qwen2").save_pretrained(model)
    build_tokenizer().save_pretrained(model)
    data = folder_of_texts(tmp_path)
    start(monkeypatch, data, model, "--seeds", "1", "--methods", "lora", "ours")
    assert "waits for all learning rates of seed 0" in capsys.readouterr().err
    cells = data / "out" / "cells" / "subj"
    first = (cells / "ours-1.json").read_bytes()
    start(monkeypatch, data, model, "--seeds", "0", "1")
    assert (cells / "ours-1.json").read_bytes() == first
    tried = [f"lora-{rate:g}-0" for rate in RATES]
    names = {path.stem for path in cells.glob("*.json")}
    assert names >= {f"{method}-{seed}" for method in SETTINGS for seed in (0, 1)} | {
        "zero-shot-0",
        "icl-0",
        "icl-1",
        "wire",
        *tried,
    }
    assert len([name for name in names if name.startswith("lora") and name.endswith("-1")]) == 1
    kept = json.loads((data / "out" / "paper.json").read_text(encoding="utf-8"))
    (ran_on,) = kept["machines"]
    assert (ran_on["device"], ran_on["dtype"] in ("float32", "bfloat16")) == ("cpu", True)
    assert len(kept["data"]["subj"]["runs"]["ours"]) == 2
    before = {path: path.stat().st_mtime_ns for path in cells.glob("*.json")}
    page = tmp_path / "page.md"
    page.write_text("<!-- figures -->\n<!-- end of figures -->\n", encoding="utf-8")
    start(monkeypatch, data, model, "--report", "--page", str(page))
    assert before == {path: path.stat().st_mtime_ns for path in cells.glob("*.json")}
    assert capsys.readouterr().out.count("### Goals") == 2
    shown = page.read_text(encoding="utf-8")
    assert "### Goals" in shown
    for name in ("paper-accuracy.svg", "paper-local.svg"):
        assert f"]({name})" in shown
        assert (tmp_path / name).exists()
    assert json.loads((tmp_path / "paper.json").read_text(encoding="utf-8")) == kept


def test_a_run_of_another_size_in_the_same_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(tmp_path / "out", QUICK, "tiny").keep("subj", "ours-0", run("ours", 0.5))
    monkeypatch.setattr(sys, "argv", ["benchmarks.paper", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--report"])
    with pytest.raises(SystemExit, match="another plan and model and setting"):
        command.main()
