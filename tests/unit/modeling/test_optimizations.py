"""Compiled, packed and eight-bit models: their scores, their probe, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ifed.errors import ProbeMismatch, UnknownModel, UnsupportedFamily
from ifed.modeling.calibration import Calibrator
from ifed.modeling.export import fold
from ifed.modeling.injection import injection_of
from ifed.modeling.language_model import LanguageModel, Options
from ifed.modeling.loading import load
from ifed.modeling.optimizations import PackedLinear
from ifed.modeling.probing import probe_of
from ifed.modeling.replicas import replica
from ifed.modeling.scoring import score
from ifed.tensors.probes import Probe
from testing.random_models import (
    ALL,
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


def probed(lm: LanguageModel) -> Probe:
    return probe_of(lm, template(lm), template(lm).labels(LABELS))


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own compiler
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # likewise
def test_a_compiled_model_scores_what_the_plain_one_does(folder: Path) -> None:
    plain, compiled = opened(folder, Options()), opened(folder, Options(compiled=True))
    layers = compiled.family.layers(compiled.model)
    assert all("forward" in layer.get_submodule("mlp").__dict__ for layer in layers)
    np.testing.assert_allclose(scores(compiled), scores(plain), rtol=1e-3, atol=1e-3)


def test_weights_in_eight_bits_take_half_the_bytes_and_are_within_the_tolerance_of_the_probe(folder: Path) -> None:
    plain, coarse = opened(folder, Options()), opened(folder, Options(int8=True))
    weight = coarse.family.layers(coarse.model)[0].get_submodule("mlp.down_proj").weight
    assert weight.qdata.dtype == torch.int8
    assert coarse.fingerprint == plain.fingerprint, "the same published weights; the probe judges what is done with them"
    assert 1e-4 < probed(plain).difference(probed(coarse)).max() < 0.15
    probed(plain).must_agree(probed(coarse))
    moved = np.abs(np.exp(scores(coarse)) - np.exp(scores(plain))).max()
    assert 1e-5 < moved < 0.2


def test_the_probe_refuses_eight_bits_that_were_rounded_too_coarsely(folder: Path) -> None:
    plain, coarse = opened(folder, Options()), opened(folder, Options(int8=True))
    weight = coarse.family.layers(coarse.model)[1].get_submodule("mlp.down_proj").weight
    weight.qdata.copy_(weight.qdata // 64 * 64)
    with pytest.raises(ProbeMismatch, match=r"first differs at layer 1, by \d+%"):
        probed(plain).must_agree(probed(coarse))


def test_coefficients_are_learned_on_eight_bits(folder: Path) -> None:
    plain, coarse = opened(folder, Options()), opened(folder, Options(int8=True))
    gradients = []
    for lm in (plain, coarse):
        prompts = template(lm)
        client = Calibrator(lm, prompts, prompts.labels(LABELS), examples(), random_context(3), ALL)
        gradients.append(client.mean_gradient(random_coefficients(3, 4), batch_size=8, seed=0).values.ravel())
    cosine = np.dot(*gradients) / np.linalg.norm(gradients[0]) / np.linalg.norm(gradients[1])
    assert 0.95 < cosine < 0.999999


def test_eight_bits_are_not_exported(folder: Path) -> None:
    lm = opened(folder, Options(int8=True))
    injected = injection_of(random_context(3), random_coefficients(3, 4), ALL, device="cpu", dtype=lm.dtype)
    with pytest.raises(UnsupportedFamily, match="in eight bits; load it without int8"):
        fold(lm, injected)


def test_a_family_without_linear_modules_is_refused_eight_bits(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFamily, match="gpt2 have no linear modules"):
        opened(save_model("gpt2", tmp_path / "gpt2"), Options(int8=True))


def test_compiling_without_a_compiler_is_refused_before_the_first_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UnknownModel, match=r"needs a C\+\+ compiler"):
        opened(folder, Options(compiled=True))


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU packs no bfloat16 weights")
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_packed_weights_give_the_same_bits(family: str, tmp_path: Path) -> None:
    folder = save_model(family, tmp_path / family)
    plain, packed = (
        load(str(folder), cache=folder, dtype="bfloat16", options=Options(packed_weights=chosen)) for chosen in (False, True)
    )
    kinds = [[module for layer in lm.family.layers(lm.model) for module in layer.modules()] for lm in (plain, packed)]
    linear, left = (sum(isinstance(module, nn.Linear) for module in modules) for modules in kinds)
    assert (left, sum(isinstance(module, PackedLinear) for module in kinds[1])) == (0, linear)
    np.testing.assert_array_equal(scores(packed), scores(plain))
    assert (packed.fingerprint, packed.dtype) == (plain.fingerprint, torch.bfloat16)
    np.testing.assert_array_equal(scores(replica(packed)), scores(plain))


def test_a_packed_linear_module_computes_the_product_of_the_plain_one() -> None:
    linear = nn.Linear(8, 6).requires_grad_(False)
    hidden = torch.randn(1, 5, 8)
    with torch.no_grad():
        torch.testing.assert_close(PackedLinear(linear)(hidden), linear(hidden))


@pytest.mark.skipif(torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU packs bfloat16 weights")
def test_a_cpu_without_bfloat16_kernels_leaves_the_weights_as_they_are(folder: Path) -> None:
    lm = load(str(folder), cache=folder, dtype="bfloat16", options=Options(packed_weights=True))
    assert not any(isinstance(module, PackedLinear) for module in lm.model.modules())


def test_weights_in_float32_are_left_as_they_are(folder: Path) -> None:
    lm = opened(folder, Options(packed_weights=True))
    assert not any(isinstance(module, PackedLinear) for module in lm.model.modules())
