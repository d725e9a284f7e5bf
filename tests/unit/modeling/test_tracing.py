"""Traced modules against the plain ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ifed.modeling.calibration import Calibrator
from ifed.modeling.language_model import LanguageModel, Options
from ifed.modeling.loading import DType, load
from ifed.modeling.replicas import replica
from ifed.modeling.scoring import score
from testing.random_models import (
    ALL,
    CODE_PATHS,
    FAMILY_NAMES,
    examples,
    random_coefficients,
    random_context,
    random_injection,
    save_model,
    scoring_items,
    template,
)

pytestmark = pytest.mark.slow

LABELS = ["positive", "topic sport"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model("llama", tmp_path / "llama")


def opened(folder: Path, options: Options) -> LanguageModel:
    return load(str(folder), cache=folder, dtype="float32", options=options)


def scores(lm: LanguageModel) -> np.ndarray:
    return np.stack(score(lm, scoring_items(lm, random_injection(lm, context_seed=1), labels=LABELS)))


@pytest.mark.parametrize(
    ("family", "dtype"), [*((family, "float32") for family in FAMILY_NAMES), *((family, "bfloat16") for family in CODE_PATHS)]
)
def test_traced_sublayers_give_the_same_bits(family: str, dtype: DType, tmp_path: Path) -> None:
    folder = save_model(family, tmp_path / family)
    plain = load(str(folder), cache=folder, dtype=dtype)
    traced = load(str(folder), cache=folder, dtype=dtype, options=Options(traced=True, packed_weights=True))
    for _ in range(3):  # TorchScript rewrites a graph after its first runs
        np.testing.assert_array_equal(scores(traced), scores(plain))
        np.testing.assert_array_equal(scores(replica(traced)), scores(plain))
    assert traced.fingerprint == plain.fingerprint


@pytest.mark.parametrize("family", [*CODE_PATHS, "gemma2"])
def test_a_layer_of_traced_sublayers_runs_in_few_calls(family: str, tmp_path: Path) -> None:
    folder = save_model(family, tmp_path / family)
    for traced, names in ((False, set()), (True, {"mlp", "norm", "attention"})):
        lm = load(str(folder), cache=folder, dtype="float32", options=Options(traced=traced))
        actual = {
            "norm" if "norm" in type(module).__name__.lower() else {"mlp": "mlp"}.get(name, "attention")
            for layer in lm.family.layers(lm.model)
            for name, module in layer.named_children()
            if "forward" in module.__dict__
        }
        # GPT-2 projects under other names, and Gemma 2 caps its scores: their attention is not traced. On some processors the trace of
        # GPT-2's activation, which Python writes out, differs in float32 too, and is not used.
        expected = names - ({"attention"} if family in ("gpt2", "gemma2") else set())
        assert actual in ((expected, expected - {"mlp"}) if family == "gpt2" else (expected,))


def test_coefficients_are_learned_through_traced_sublayers(folder: Path) -> None:
    gradients = []
    for traced in (False, True):
        lm = opened(folder, Options(traced=traced))
        calibrator = Calibrator(lm, template(lm), template(lm).labels(LABELS), examples(), random_context(3), ALL)
        gradients.append(calibrator.gradient_of(random_coefficients(3, 4), [0, 1, 2]).values)
    assert np.abs(gradients[0]).max() > 0
    np.testing.assert_array_equal(gradients[1], gradients[0])
