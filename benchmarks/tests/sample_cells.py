"""Cells of the paper's experiment in the form that a run stores, with made-up figures."""

from __future__ import annotations

from typing import Any

from benchmarks.paper.methods import LORA, SETTINGS, Plan

RATES = (0.001, 0.01)
MACHINE = {"cpu": "a CPU", "amx": True, "cores": 2, "threads": 1, "device": "cpu", "dtype": "float32", "torch": "2"}


def row(number: int, accuracy: float, **more: float) -> dict[str, Any]:
    ways = {"accuracy_plain": accuracy - 0.1, "accuracy_prior_matched": accuracy}
    sizes = {"seconds": 2.0 if number else 0.0, "loss": 0.5, "body_up": 1000, "body_down": 2000}
    return {"round": number, "accuracy": accuracy, "macro_f1": accuracy, **ways, **sizes, **more}


def run(method: str, *accuracies: float, seed: int = 0, **more: Any) -> dict[str, Any]:
    rows = [row(number, accuracy, local=0.5, **{"global": accuracy}) for number, accuracy in enumerate(accuracies)]
    setting = {
        "policy": {"local_steps": 8 * (method_setting.steps_times if (method_setting := (SETTINGS | LORA).get(method)) else 1)}
    }
    cell = {"method": method, "seed": seed, "rows": rows, "setting": setting, "machine": MACHINE}
    return cell | {"context_seconds": 3.0, "kept_seconds": 1.0} | more


def wire(up: int) -> dict[str, Any]:
    round_counts = {"up": up, "down": 10}
    parts = {
        "joining": {"up": 5, "down": 5},
        "context": {"up": 40, "down": 50},
        "round": round_counts,
        "evaluation": {"up": 7, "down": 10},
    }
    return parts | {"bodies": {"update": up - 1}}


def sample_results(ours: float = 0.93, lora: float = 0.92, body: int = 1700) -> dict[str, Any]:
    """Return the results of one data set: two seeds of every method, but one of the base model, LoRA and local ICL."""
    runs: dict[str, Any] = {method: [run(method, 0.6, 0.7, 0.8, seed=seed) for seed in (0, 1)] for method in SETTINGS}
    runs["ours"] = [run("ours", 0.6, 0.9, ours - 0.01), run("ours", 0.6, 0.7, ours + 0.01, seed=1)]
    runs["lora"] = [{**run("lora", lora), "rows": [row(2, lora)], "rate": 0.01}]
    runs["lora-steps"] = []
    runs["zero-shot"], runs["icl"] = [row(0, 0.6) | {"method": "zero-shot"}], [{"method": "icl", "accuracy": 0.55, "macro_f1": 0.5}]
    del runs["icl"][0]["method"], runs["zero-shot"][0]["round"]
    counted = {method: wire(body + 1) for method in SETTINGS} | {"lora": {"round": {"up": 200_000, "down": 200_000}}}
    counted["lora"]["bodies"] = {"update": 199_000}
    sweep = [run("lora", lora, rate=rate) for rate in RATES]
    data = {"subj": {"runs": runs, "sweep": sweep, "rate": 0.01, "wire": counted}}
    return {"plan": Plan().__dict__, "model": "tiny", "machines": [MACHINE, MACHINE | {"amx": False, "threads": 2}], "data": data}
