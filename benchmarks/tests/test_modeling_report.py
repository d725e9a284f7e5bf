"""The modelling benchmark's tables on made-up figures, and its measurements on a small model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.datasets import DATASETS
from benchmarks.modeling.measurements import DEMONSTRATIONS, Setting, overheads, speeds
from benchmarks.modeling.options import measure_load_options, measure_options
from benchmarks.modeling.report import ROWS, markdown
from benchmarks.modeling.roofline import speedup_limits
from benchmarks.modeling.timing import median_seconds, overhead
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.loading import load
from testing.random_models import build, build_model, build_tokenizer, examples

STEPS = ("extraction", "calibration", "classification")


def run(model: str, **options: Any) -> dict[str, Any]:
    return {
        "model": model,
        "data": "SUBJ",
        "milliseconds": {f"{step} published": 100.0 for step in STEPS} | {key: 8.0 for _, key, _, _ in ROWS},
        "ceilings": {"published": 40.0, "ours": 200.0, "extraction, classification": 6.25, "calibration": 9.0},
        "overheads": {
            "hooks": (0.01, 0.02, 0.03),
            "itself": (-0.01, 0.0, 0.01),
            "folded": "this family has no place for it" if model == "gemma" else (-0.01, 0.001, 0.01),
            "few-shot ms": 90.0,
            "injection ms": 10.0,
        },
        "options": options,
    }


def results() -> dict[str, Any]:
    smol = run(
        "smollm2", **{"rows packed": [1.1, 1.25, 1.5], "int8 weights": [0.8, 0.9, 1.0], "moved": 0.0123, "bytes": [2e8, 1e8]}
    )
    return {"runs": [smol, run("gemma", **{"rows packed": [1.0, 1.0, 1.0], "int8 weights": "torchao is not installed"})]}


@pytest.mark.parametrize("stored", [False, True])
def test_the_tables_are_the_same_from_memory_and_from_the_file(stored: bool) -> None:
    shown = json.loads(json.dumps(results())) if stored else results()
    lines = markdown(shown).splitlines()
    assert "| smollm2 | SUBJ | extraction | all layers, as published | 100.0 | 8.0 | 12.5 | 10 |" in lines
    assert sum("| SUBJ | calibration |" in line for line in lines) == 6
    assert "| smollm2 | SUBJ | 40 | 200 | 6.2 | 9.0 |" in lines
    assert "| smollm2 | SUBJ | +2.0 % (+1.0 to +3.0) | +0.1 % (-1.0 to +1.0) | +0.0 % (-1.0 to +1.0) | 90.0 | 10.0 | 9.0 |" in lines
    assert "| gemma | SUBJ | +2.0 % (+1.0 to +3.0) | not possible | +0.0 % (-1.0 to +1.0) | 90.0 | 10.0 | 9.0 |" in lines
    assert lines[-5:] == [
        "| --- | ---: | ---: |",
        "| rows packed | 1.25 (1.10 to 1.50) | 1.00 (1.00 to 1.00) |",
        "| int8 weights | 0.90 (0.80 to 1.00) | not possible |",
        "| moved | 0.012 | – |",
        "| bytes | 200 MB → 100 MB | – |",
    ]


def test_an_overhead_is_positive_where_the_change_is_slower() -> None:
    spin = torch.ones(400, 400)

    def times(count: int) -> object:
        return [spin @ spin for _ in range(count)]

    low, middle, high = overhead(lambda: times(40), lambda: times(4), pairs=5)
    assert low <= middle <= high
    assert middle > 1
    seconds = median_seconds({"much": lambda: times(40), "little": lambda: times(4)}, repetitions=3)
    assert seconds["much"] > seconds["little"] > 0


def setting(lm: LanguageModel) -> Setting:
    return Setting(lm, lm, DATASETS["subj"], examples(DEMONSTRATIONS + 4), repetitions=1, groups=4)


def test_a_run_on_a_small_model_fills_every_cell() -> None:
    measured = setting(build(max_position_embeddings=2048))
    stored = {
        "model": "random",
        "data": "SUBJ",
        "milliseconds": speeds(measured),
        "overheads": overheads(measured, pairs=2),
        "options": {},
    }
    stored |= {"ceilings": speedup_limits(measured)}
    assert all(value > 0 for value in speedup_limits(measured).values())
    assert all(value > 0 for value in stored["milliseconds"].values())
    lines = markdown({"runs": [stored]}).splitlines()
    assert sum(line.startswith("| random | SUBJ |") for line in lines) == len(ROWS) + 2
    assert not any("not possible" in line for line in lines), "a Llama model can be folded"


def test_the_speedup_limit_follows_from_the_head_and_both_rates() -> None:
    measured = setting(build(max_position_embeddings=2048))
    limits, layers = speedup_limits(measured), measured.fast.family.layers(measured.fast.model)
    inner = sum(weight.numel() for layer in layers for weight in layer.parameters() if weight.ndim == 2)
    head = measured.fast.model.get_output_embeddings().weight.numel()
    assert limits["extraction, classification"] == pytest.approx(limits["ours"] / limits["published"] * (1 + head / inner))


def test_every_option_is_measured_on_a_small_model() -> None:
    measured = measure_options(setting(build(max_position_embeddings=2048)), pairs=2)
    assert len(measured) == 9
    for ratios in measured.values():
        assert len(ratios) == 3
        assert ratios[1] > 0


def test_options_of_the_loaded_model_are_measured_or_their_refusal_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")  # no compiler
    build_model("llama").save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    lm = load(str(tmp_path), cache=tmp_path)
    measured = measure_load_options(setting(lm), str(tmp_path), tmp_path, pairs=2)
    assert "needs a C++ compiler" in measured["torch.compile"]
    assert len(measured["int8 weights"]) == 3
    assert 0 < measured["int8 weights: largest change of a probability"] < 0.5
    plain, coarse = measured["int8 weights: bytes of the layers"]
    assert coarse < plain
    plain, packed = measured["packed weights: bytes of the layers"]
    assert packed == plain
    assert measured["packed weights: largest change of a probability"] == 0
