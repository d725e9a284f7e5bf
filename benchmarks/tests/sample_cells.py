"""Cells of the paper's experiment in the form that a run stores, with made-up figures."""

from __future__ import annotations

from typing import Any

from benchmarks.paper.methods import LORA, SETTINGS, TITLES, Plan

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


def by_set(*accuracies: float) -> dict[str, Any]:
    """Return figures on texts A, B and A+B."""
    return {
        name: {"accuracy": accuracy, "macro_f1": accuracy} for name, accuracy in zip(("A", "B", "A+B"), accuracies, strict=True)
    }


def task(method: str, accuracy: float, *, seed: int = 0, body: int = 1700, seconds: float = 1.0) -> dict[str, Any]:
    """Return a cell of the second generation."""
    part = {"seconds": seconds, "up": 4000.0, "down": 6000.0, "largest_body": body, "mean_body": body}
    parts = {name: part | {"rounds": 2 if name in ("head", "calibration") else 1} for name in ("context", "head", "calibration")}
    rows = [{"round": 1, "version": 1, "figures": by_set(accuracy, accuracy, accuracy)}]
    readings = {"served": by_set(accuracy + 0.01, accuracy - 0.01, accuracy)}
    return {"method": method, "seed": seed, "rows": rows, "parts": parts, "readings": readings, "machine": MACHINE}


def adapters(accuracy: float, *, seed: int = 0, rate: float = 0.01, head: float = 0.91) -> dict[str, Any]:
    """Return a cell of FedAvg-LoRA with a label head on its states."""
    plain, matched = by_set(accuracy, accuracy, accuracy), by_set(accuracy + 0.01, accuracy + 0.01, accuracy + 0.01)
    figures = {"plain": plain, "matched": matched, "head": by_set(head, head, head)}
    figures["plain"]["development"] = {"accuracy": accuracy - 0.02, "macro_f1": accuracy}
    figures["matched"]["development"] = {"accuracy": accuracy - 0.03, "macro_f1": accuracy}
    last = {
        "round": 2,
        "loss": 0.5,
        "seconds": 20.0,
        "accuracy": accuracy,
        "accuracy_plain": accuracy,
        "accuracy_prior_matched": accuracy,
    }
    rows = [{"round": 1, "loss": 0.6, "seconds": 20.0}, last]
    cost = {"bodies_up": [400_000, 500], "bodies_down": [100, 6000], "seconds": 2.0}
    cell = {"method": "lora-8", "seed": seed, "rate": rate, "rows": rows, "readings": figures, "head": cost, "machine": MACHINE}
    return cell | {"setting": {"policy": {"local_steps": 8}}}


def sample_results(ours: float = 0.95, lora: float = 0.92, body: int = 1700, seconds: float = 1.0) -> dict[str, Any]:
    """Return the results of one data set: two seeds of most methods, one of the base model, LoRA and local ICL."""
    runs: dict[str, Any] = {method: [] for method in TITLES}
    runs |= {method: [run(method, 0.6, 0.7, 0.8, seed=seed) for seed in (0, 1)] for method in SETTINGS}
    runs["ours"] = [run("ours", 0.6, 0.9, 0.92), run("ours", 0.6, 0.7, 0.94, seed=1)]
    runs["lora"] = [{**run("lora", 0.92), "rows": [row(2, 0.92)], "rate": 0.01}]
    runs["zero-shot"], runs["icl"] = [row(0, 0.6) | {"method": "zero-shot"}], [{"method": "icl", "accuracy": 0.55, "macro_f1": 0.5}]
    del runs["zero-shot"][0]["round"]
    for cell in (*runs["zero-shot"], *runs["icl"]):
        cell["seed"] = 0
    runs["second"] = [
        task("second", ours + shift, seed=seed, body=body, seconds=seconds) for seed, shift in ((0, -0.01), (1, 0.01))
    ]
    runs["head"] = [task("head", 0.9)]
    runs["lora-8"] = [adapters(lora), adapters(lora, seed=1)]
    cost = {"bodies_up": [500, 600], "bodies_down": [100, 6000], "seconds": 0.5}
    embedding = {"readings": {"sums": by_set(0.89, 0.87, 0.88), "gradient": by_set(0.88, 0.86, 0.87)}}
    runs["embedding"] = [
        embedding | {"method": "embedding", "seed": 0, "head": {"sums": cost, "gradient": cost}, "machine": MACHINE}
    ]
    counted = {method: wire(1701) for method in SETTINGS}
    counted |= {method: {"round": {"up": 200_000, "down": 200_000}, "bodies": {"update": 199_000}} for method in ("lora", "lora-8")}
    sweep = [adapters(lora - 0.01, rate=0.001), adapters(lora), *(run("lora", 0.92, rate=rate) for rate in RATES)]
    rate = {"lora-8": 0.01, "lora": 0.01}
    data = {"subj": {"title": "SUBJ", "runs": runs, "sweep": sweep, "rate": rate, "wire": counted}}
    return {"plan": Plan().__dict__, "model": "tiny", "machines": [MACHINE, MACHINE | {"amx": False, "threads": 2}], "data": data}
