"""What must hold for the real models of the catalogue, downloaded once: probes, injection by hand, folding."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from ifed.downloads import cache_folder
from ifed.errors import ProbeMismatch, UnsupportedFamily
from ifed.messages.texts import LabelledText
from ifed.modeling.batching import Batch, Row
from ifed.modeling.catalog import CATALOG
from ifed.modeling.export import fold, write
from ifed.modeling.extraction import context_vector
from ifed.modeling.hooks import capture, final_hidden, inject
from ifed.modeling.injection import Injection, injection_of
from ifed.modeling.language_model import LanguageModel, Options, quiet
from ifed.modeling.loading import DType, load
from ifed.modeling.probing import probe_of
from ifed.modeling.prompts import PromptTemplate
from ifed.tensors.probes import TEXTS, Probe
from ifed.tensors.values import Coefficients, ContextVector
from tests.unit.modeling.reference_forward import gemma3_by_hand, llama_by_hand

pytestmark = [pytest.mark.model, pytest.mark.timeout(900)]
models = pytest.mark.parametrize("name", sorted(CATALOG))


@cache
def model(name: str, dtype: DType = "float32") -> LanguageModel:
    return load(name, cache=cache_folder(_cache()), dtype=dtype)


def template(lm: LanguageModel) -> PromptTemplate:
    return PromptTemplate.of(lm, "Review: {text}\nSentiment:")


def probed(lm: LanguageModel) -> Probe:
    return probe_of(lm, template(lm), template(lm).labels(["negative", "positive"]))


def injection(lm: LanguageModel) -> Injection:
    layers, random = range(lm.num_layers // 2, lm.num_layers), np.random.default_rng(0)
    context = ContextVector(random.normal(size=(len(layers), 2, lm.hidden_size)))
    values = Coefficients.identity(len(layers), 4).values + 0.05 * random.normal(size=(len(layers), 2, 2, 4))
    return injection_of(context, Coefficients(values), layers, device="cpu", dtype=lm.dtype)


@models
def test_bfloat16_passes_the_probe_of_float32(name: str) -> None:
    probed(model(name)).must_agree(probed(model(name, "bfloat16")))


@models
def test_weights_of_eight_bits_pass_the_probe(name: str) -> None:
    coarse = load(name, cache=cache_folder(_cache()), dtype="bfloat16", options=Options(int8=True))
    probed(model(name)).must_agree(probed(coarse))


@models
def test_weights_of_four_bits_do_not_pass_the_probe(name: str) -> None:
    exact, coarse = model(name), load(name, cache=cache_folder(_cache()), dtype="float32")
    for layer in coarse.family.layers(coarse.model):
        for parameter in layer.parameters():
            if parameter.ndim == 2:
                groups = parameter.data.reshape(-1, 32)
                steps = groups.abs().amax(1, keepdim=True).clamp_min(1e-12) / 7
                parameter.data = ((groups / steps).round() * steps).reshape(parameter.shape)
    with pytest.raises(ProbeMismatch, match="differs at layer"):
        probed(exact).must_agree(probed(coarse))


def _cache() -> Path | None:
    where = os.environ.get("MODEL_CACHE")
    return Path(where) if where else None


@models
def test_the_residual_stream_is_the_equation_of_captured_activations(name: str) -> None:
    lm, injected = model(name), injection(model(name))
    batch = Batch.of([Row.for_last_token(template(lm).prompt(TEXTS[0]).ids)], layout="padded")
    entered, left = [], []
    hooks = []
    for layer in lm.family.layers(lm.model):
        hooks.append(
            layer.register_forward_pre_hook(
                lambda _m, args, kw: entered.append(args[0] if args else kw["hidden_states"]), with_kwargs=True
            )
        )
        hooks.append(layer.register_forward_hook(lambda _m, _a, out: left.append(out[0] if isinstance(out, tuple) else out)))
    with capture(lm, injected.layers) as raw, inject(lm, injected), torch.no_grad():
        final_hidden(lm, batch)
    for hook in hooks:
        hook.remove()
    for at, layer in enumerate(injected.layers):
        expected = entered[layer]
        for site in (0, 1):
            expected = expected + (injected.shift[at, site] + injected.scale[at, site] * raw.outputs[layer, site])
        torch.testing.assert_close(left[layer], expected, rtol=1e-4, atol=1e-3)


@models
def test_captured_vectors_equal_a_forward_pass_written_by_hand(name: str) -> None:
    lm, by_hand = model(name), {"llama": llama_by_hand, "gemma3_text": gemma3_by_hand}[CATALOG[name].family]
    exact = load(name, cache=cache_folder(_cache()), dtype="float32")
    exact.model.double()
    labels = template(lm).labels(["negative", "positive"])
    examples = [LabelledText(text, index % 2) for index, text in enumerate(TEXTS)]
    with torch.no_grad():
        rows = [torch.tensor(template(lm).demonstration(example.text, example.label, labels)) for example in examples]
        expected = torch.stack([by_hand(exact, ids) for ids in rows]).mean(0)
    actual = torch.tensor(context_vector(lm, template(lm), labels, examples, layers=range(lm.num_layers)).values)
    distances = (actual - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert float(distances.max()) < 1e-3


@models
def test_predictions_depend_on_neither_batch_nor_padding(name: str) -> None:
    lm, injected = model(name), injection(model(name))
    rows = [Row.for_last_token(template(lm).prompt(text).ids) for text in TEXTS]
    actual = []
    for chosen in ([rows], [rows[::-1]], [[row] for row in rows]):
        for layout in ("packed", "padded"):
            with torch.no_grad(), inject(lm, injected):
                states = [Batch.of(part, layout=layout) for part in chosen]
                parts = torch.cat([batch.select_outputs(final_hidden(lm, batch)) for batch in states])
            actual.append(parts.flip(0) if chosen[0][0] is rows[-1] else parts)
    for other in actual[1:]:
        torch.testing.assert_close(other, actual[0], rtol=1e-2, atol=1e-2)


def test_smollm2_folds_and_gives_the_injected_logits(tmp_path: Path) -> None:
    lm = model("smollm2-135m")
    injected = injection(lm)
    write(lm, *fold(lm, injected), tmp_path)
    with quiet():
        stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    for text in TEXTS:
        ids = template(lm).prompt(text).ids
        with torch.no_grad(), inject(lm, injected):
            ours = lm.model(torch.tensor([ids])).logits
        with torch.no_grad():
            torch.testing.assert_close(stock(torch.tensor([ids])).logits, ours, rtol=1e-3, atol=1e-3)


def test_gemma_3_is_refused_a_folded_checkpoint() -> None:
    lm = model("gemma-3-270m")
    with pytest.raises(UnsupportedFamily, match="normalises the output of a sub-layer"):
        fold(lm, injection(lm))
