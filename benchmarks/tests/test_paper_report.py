"""What the comparison makes of its cells: tables, figures, goals."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from benchmarks.paper import __main__ as command
from benchmarks.paper.methods import TITLES, VARIANTS, Plan
from benchmarks.paper.plots import draw, mean_by_round
from benchmarks.paper.report import markdown
from benchmarks.paper.summary import ENTRIES, bytes_until, client_cost, goals, seconds_until
from benchmarks.tests.sample_cells import MACHINE, adapters, row, run, sample_results


def table_of(results: dict[str, Any], title: str) -> str:
    return markdown(results).partition(f"### {title}")[2].partition("###")[0]


def test_the_accuracy_table_has_every_set_and_old_cells_have_texts_a_alone() -> None:
    text = table_of(sample_results(), "Accuracy")
    assert "| SUBJ | ours | 96.0 ± 1.4 | 94.0 ± 1.4 | 95.0 ± 1.4 | 96.0 ± 1.4 | 94.0 ± 1.4 | 95.0 ± 1.4 | 2 | – | – |" in text
    assert "| SUBJ | first release | 93.0 ± 1.4 | – | – | 93.0 ± 1.4 | – | – | 2 | – | – |" in text
    assert "| SUBJ | IFed-ICL as published | 80.0 ± 0.0 | – | – | 80.0 ± 0.0 | – | – | 2 | 91.2 | 90.67 |" in text
    assert "| SUBJ | local few-shot | 55.0 | – | – | 50.0 | – | – | 1 | 70.0 | – |" in text
    assert "| SUBJ | FedAvg-LoRA, 8 steps, + label head | 91.0 ± 0.0 | 91.0 ± 0.0 | 91.0 ± 0.0 |" in text
    assert "| SUBJ | sentence embeddings + head, conjugate gradients | 88.0 | 86.0 | 87.0 |" in text
    assert "| SUBJ | FedAvg-LoRA, rate chosen on A | 92.0 | – | – |" in text
    assert (
        "Measured on a CPU with AMX, 2 cores, 1 thread, on cpu in float32, torch 2; and on a CPU, 2 cores, 2 threads, on"
        in markdown(sample_results())
    )


def test_every_method_of_the_comparison_has_a_row_of_its_own() -> None:
    assert {entry.method for entry in ENTRIES} == set(TITLES) - set(VARIANTS)
    assert len({entry.title for entry in ENTRIES}) == len(ENTRIES)


def test_development_texts_have_a_column_of_their_own_and_no_texts_b() -> None:
    text = table_of(sample_results() | {"development": True}, "Accuracy")
    assert "| data | method | accuracy development, % | macro-F1 development, % | seeds |" in text
    assert "| SUBJ | ours | 96.0 ± 1.4 | 96.0 ± 1.4 | 2 |" in text


def test_costs_are_those_of_all_parts_of_a_task() -> None:
    results = sample_results()
    dataset = results["data"]["subj"]
    cost = client_cost(dataset["runs"]["second"][0], "served", dataset["wire"])
    assert cost is not None
    assert (cost.rounds, cost.head_rounds, cost.largest_body, cost.round_up, cost.up, cost.seconds) == (
        2,
        2,
        1700,
        2000,
        12_000,
        3.0,
    )
    lora, with_head = (client_cost(dataset["runs"]["lora-8"][0], reading, dataset["wire"]) for reading in ("plain", "head"))
    assert lora is not None
    assert with_head is not None
    assert (lora.up, lora.seconds, with_head.up, with_head.seconds) == (400_000, 40.0, 800_500, 42.0)
    text = table_of(results, "Costs of one client")
    assert "| SUBJ | ours | 2.0 | 2.0 | 1,700 | 2,000 | 1,700 | 2,000 | 12,000 | 18,000 | 3.0 | 1/13.3 | 2 |" in text
    assert "| SUBJ | FedAvg-LoRA, 8 steps | 2.0 | 0.0 | – | – | 199,000 | 200,000 | 400,000 | 400,000 | 40.0 | 1/1.0 | 2 |" in text
    assert (
        "| SUBJ | sentence embeddings + head, full sums | 0.0 | 2.0 | 600 | – | – | – | 1,100 * | 6,100 * | 0.5 | 1/80.0 | 1 |"
        in text
    )
    assert "| SUBJ | ours | head | 2 | 4,000 | 6,000 | 1.00 |" in markdown(results)


def test_seconds_and_bytes_of_the_first_release_add_up() -> None:
    dataset = sample_results()["data"]["subj"]
    first = dataset["runs"]["ours"][0]
    assert seconds_until(first) == [4.0, 6.0, 8.0]
    assert bytes_until(first, dataset["wire"]) == [100, 100 + 1711, 100 + 2 * 1711]
    assert bytes_until(first, None) is None
    assert client_cost(first, "served", None) is None
    cost = client_cost(first, "served", dataset["wire"])
    assert cost is not None
    assert cost.up + cost.down == 100 + 2 * 1711 + 17


def test_seconds_of_another_machine_are_not_averaged() -> None:
    results = sample_results()
    first, second = results["data"]["subj"]["runs"]["second"]
    for part in first["parts"].values():
        part["seconds"] = 100.0
    elsewhere = MACHINE | {"cpu": "elsewhere"}
    first["machine"] = elsewhere
    results["data"]["subj"]["runs"]["head"][0]["machine"] = MACHINE
    text = table_of(results, "Costs of one client")
    assert "those of the cells that ran on a CPU with AMX, 2 cores, 1 thread, on cpu in float32, torch 2." in text
    assert "| 12,000 | 18,000 | 3.0 | 1/13.3 | 1 |" in text
    second["machine"] = elsewhere
    assert "those of the cells that ran on elsewhere" in table_of(results, "Costs of one client")


@pytest.mark.parametrize(
    ("changes", "met"),
    [
        ({}, [True, True, True, True]),
        ({"ours": 0.934}, [True, True, True, True]),
        ({"ours": 0.933}, [False, True, True, True]),
        ({"ours": 0.909}, [False, False, True, True]),
        ({"body": 2301}, [True, True, False, True]),
        ({"seconds": 1.4}, [True, True, True, False]),
    ],
)
def test_goals_are_accuracy_the_same_head_on_lora_bytes_and_seconds(changes: dict[str, Any], met: list[bool]) -> None:
    assert [goal.met for goal in goals(sample_results(**changes))] == met


def test_a_goal_compares_the_seeds_that_both_have() -> None:
    results = sample_results()
    runs = results["data"]["subj"]["runs"]
    runs["lora-8"] = [adapters(0.92, seed=1, head=0.97)]
    found = next(goal for goal in goals(results) if "label head" in goal.goal)
    assert (found.result, found.met) == ("-1.0 points", False)
    runs["lora-8"] = []
    assert [goal.met for goal in goals(results)] == [True, True, None]
    assert "core-seconds at most 1/10 of those of FedAvg-LoRA, 8 steps | – | not measured |" in table_of(results, "Goals of ours")
    runs["second"] = []
    assert goals(results) == []


def test_ones_own_texts_have_no_goal_of_accuracy_or_bytes() -> None:
    results = sample_results()
    results["data"] = {"own": results["data"]["subj"] | {"title": "own"}}
    assert [goal.goal.partition(" ")[0] for goal in goals(results)] == ["at", "core-seconds"]
    assert "| own | ours | 96.0 ± 1.4 |" in markdown(results)


def test_where_a_learning_rate_was_chosen_is_said() -> None:
    text = table_of(sample_results(), "FedAvg-LoRA: the learning rate")
    assert "| SUBJ | FedAvg-LoRA, 8 steps | 0.001 | development | 89.0 | 88.0 | 0.500 |  |" in text
    assert "| SUBJ | FedAvg-LoRA, 8 steps | 0.01 | development | 90.0 | 89.0 | 0.500 | chosen |" in text
    assert "| SUBJ | FedAvg-LoRA, rate chosen on A | 0.01 | A | 82.0 | 92.0 | 0.500 | chosen |" in text


def test_variants_have_a_table_of_their_own_beside_the_methods_they_differ_from() -> None:
    results = sample_results()
    runs = results["data"]["subj"]["runs"]
    runs["wide"] = [run("wide", 0.5, 0.6, 0.9, 0.7, 0.8)]
    runs["constant"] = [run("constant", 0.5, 0.6, seed=1)]
    text = tried(results)
    assert f"| SUBJ | {TITLES['wide']} | 4 | 90.0 | 80.0 | 80.0 | 90.0 |" in text
    assert "| SUBJ | first release | 2 | 90.0 | 92.0 | 91.0 | 92.0 |" in text, "the first version is the base model"
    assert [row.split(" | ")[1] for row in text.splitlines() if row.startswith("| SUBJ")] == [
        TITLES[method]
        for method in ("ours", "ours-int8", "wide", "wide-constant", "steps-long", "steps", "more-steps", "long", "lora")
    ], "on the seed that it is tried on"
    runs |= {method: [] for method in VARIANTS}
    assert tried(results) == ""


def test_loras_better_reading_is_shown_beside_the_variants() -> None:
    results = sample_results()
    runs = results["data"]["subj"]["runs"]
    runs["lora-steps"] = [run("lora-steps", 0.5, 0.8, 0.9, 0.95)]
    runs["lora-steps"][0]["rows"][-1] |= {"accuracy_plain": 0.96, "accuracy_prior_matched": 0.93}
    text = tried(results)
    assert f"| SUBJ | {TITLES['lora-steps']} | 3 | 70.0 | 96.0 | 82.0 | 96.0 |" in text, "70, 80 and 96"
    assert f"| SUBJ | {TITLES['lora']} | 2 | – | 92.0 | – | 92.0 |" in text


def tried(results: dict[str, Any]) -> str:
    return table_of(results, "First release: what else was tried, on seed 0")


def test_global_coefficients_are_shown_beside_local_ones() -> None:
    assert "| SUBJ | first release | 93.0 | 50.0 | 43.0 | 2 | – |" in markdown(sample_results())
    assert "| SUBJ | IFed-ICL as published | 80.0 | 50.0 | 30.0 | 2 | 26.05 |" in markdown(sample_results())


def test_the_papers_bytes_are_shown_beside_ours() -> None:
    text = markdown(sample_results())
    assert "| 199,000 | 13,358 | – |" in text
    assert "| 1.8 | 514 |" in text


def test_another_model_or_source_has_a_folder_of_its_own() -> None:
    def folder(**changes: Any) -> str:
        given = {"model": command.MODEL, "quick": False, "source": None, "training": None, "development": False}
        return str(command._default_folder(argparse.Namespace(**given | changes)))

    assert folder() == "benchmarks/results/paper"
    assert folder(model="Qwen/Qwen2.5-7B", quick=True) == "benchmarks/results/paper-qwen2.5-7b-quick"
    assert folder(training=5000) == "benchmarks/results/paper-5000"
    assert folder(development=True) == "benchmarks/results/paper-development"
    assert folder(source=Path("/data/Reviews"), training=99) == "benchmarks/results/paper-reviews"


def test_missing_measurements_are_left_out() -> None:
    results = sample_results()
    dataset = results["data"]["subj"]
    dataset["runs"] = {method: [] for method in dataset["runs"]} | {"second": dataset["runs"]["second"]}
    dataset |= {"wire": None, "sweep": []}
    text = markdown(results)
    assert "| SUBJ | FedAvg-LoRA" not in text
    assert "First release" not in text
    assert markdown({"plan": Plan().__dict__, "model": "tiny", "machines": [], "data": {}}).startswith("tiny; 10 clients")


def test_figures_are_drawn_by_bytes_and_for_local_coefficients(tmp_path: Path) -> None:
    names = [path.name for path in draw(sample_results(), tmp_path)]
    assert names == [f"paper-{name}.{kind}" for name in ("accuracy", "local") for kind in ("png", "svg")]
    assert (tmp_path / names[0]).read_bytes().startswith(b"\x89PNG")
    accuracy, local = ((tmp_path / f"paper-{name}.svg").read_text(encoding="utf-8") for name in ("accuracy", "local"))
    for title in ("ours", "label head alone", "first release", "FedAvg-LoRA, 8 steps, + label head", "zero-shot"):
        assert f"<!-- {title} -->" in accuracy
    assert "<!-- first release, mean of local -->" in local
    assert "mean of local" not in accuracy
    results = sample_results()
    results["data"]["subj"]["runs"] = {method: [] for method in TITLES}
    assert list(draw(results, tmp_path)) == []


def test_a_plot_averages_the_rounds_that_all_seeds_have() -> None:
    runs = [run("lora", 0.5, 0.6, 0.7, 0.8), {**run("lora", 0.0), "rows": [row(1, 0.8), row(3, 1.0)]}]
    assert mean_by_round(runs, "accuracy") == pytest.approx({1: 70.0, 3: 90.0})
