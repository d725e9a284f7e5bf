"""The probe of a model: the same for the same model in another dtype or layout, and another for each way to be wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from ifed.errors import ProbeMismatch
from ifed.modeling.batching import Batch, Row
from ifed.modeling.hooks import capture, final_hidden
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.probing import probe_of, tokens_digest
from ifed.tensors.probes import BUCKETS, TEXTS, Probe
from testing.random_models import CODE_PATHS, POSITIONS, SHAPES, TEMPLATE, build, build_fresh, template

NAMES = ["positive", "negative"]
code_paths = pytest.mark.parametrize("family", CODE_PATHS)


def probed(lm: LanguageModel, text: str = TEMPLATE) -> Probe:
    prompts = template(lm, text)
    return probe_of(lm, prompts, prompts.labels(NAMES))


def by_hand(lm: LanguageModel, batch: Batch) -> Probe:
    with torch.no_grad(), capture(lm, range(lm.num_layers), batch=batch) as captured:
        final_hidden(lm, batch)
    prompts = template(lm)
    return Probe.of(tokens_digest(prompts, prompts.labels(NAMES)), captured.stacked().to(torch.float32).numpy())


def rows(lm: LanguageModel) -> list[Row]:
    return [Row.for_last_token(template(lm).prompt(text).ids) for text in TEXTS]


def four_bits(weight: torch.Tensor) -> torch.Tensor:
    steps = weight.abs().amax(1, keepdim=True) / 7
    return (weight / steps).round() * steps


@pytest.mark.parametrize("family", [*CODE_PATHS, "gemma2"])
def test_one_model_in_float32_and_bfloat16_agrees(family: str) -> None:
    exact = probed(build(family))
    exact.must_agree(probed(build(family, dtype=torch.bfloat16)))
    assert exact.difference(exact).max() == 0
    assert exact.head_difference(exact) == 0


@code_paths
def test_the_layout_of_the_batch_does_not_matter(family: str) -> None:
    lm = build(family)
    assert probed(lm).difference(by_hand(lm, Batch.of(rows(lm), layout="padded"))).max() < 1e-3


@code_paths
def test_another_revision_is_refused_at_the_first_layer_that_differs(family: str) -> None:
    lm, other = build(family), build_fresh(family)
    for parameter in other.family.layers(other.model)[1].parameters():
        parameter.data = parameter.data + 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ProbeMismatch, match=r"first differs at layer 1, by \d+%, and most at layer [12], by \d+%; 15% is allowed"):
        probed(lm).must_agree(probed(other))


@code_paths
def test_a_coarse_quantisation_is_refused(family: str) -> None:
    lm, coarse = build(family), build_fresh(family)
    for parameter in coarse.model.parameters():
        parameter.data = four_bits(parameter.data) if parameter.ndim == 2 else parameter.data
    with pytest.raises(ProbeMismatch, match="coarse quantisation"):
        probed(lm).must_agree(probed(coarse))


@code_paths
def test_another_head_is_refused_though_all_layers_agree(family: str) -> None:
    lm, other = build(family), build_fresh(family, tie_word_embeddings=False, seed=1)
    other.model.load_state_dict(
        {name: value for name, value in lm.model.state_dict().items() if name != "lm_head.weight"}, strict=False
    )
    with pytest.raises(ProbeMismatch, match=r"its logits differ by \d+%; 15% is allowed: another final norm or output head"):
        probed(lm).must_agree(probed(other))


def test_a_probe_from_before_logits_were_added_is_compared_by_its_layers() -> None:
    new = probed(build())
    old = Probe.model_validate(new.model_dump(exclude={"logits"}))
    assert old.logits is None
    old.must_agree(new)
    new.must_agree(old)


@code_paths
def test_padding_on_the_left_without_a_mask_is_refused(family: str) -> None:
    # A window shorter than the padding would hide it, rightly: nothing behind the window changes anything.
    lm = build(family, **({"sliding_window": POSITIONS} if "sliding_window" in SHAPES.get(family, {}) else {}))
    longest = max(len(row.ids) for row in rows(lm))
    padded = [Row.for_last_token((0,) * (longest - len(row.ids)) + row.ids) for row in rows(lm)]
    with pytest.raises(ProbeMismatch, match="padding that is not masked"):
        probed(lm).must_agree(by_hand(lm, Batch.of(padded, layout="packed")))


def test_reading_the_padding_in_place_of_the_last_token_is_refused() -> None:
    lm = build()
    longest = max(len(row.ids) for row in rows(lm))
    padded = [Row.for_last_token(row.ids + (0,) * (longest - len(row.ids))) for row in rows(lm)]
    with pytest.raises(ProbeMismatch, match="differs at layer 0"):
        probed(lm).must_agree(by_hand(lm, Batch.of(padded, layout="packed")))


def test_another_template_is_refused() -> None:
    lm = build()
    with pytest.raises(ProbeMismatch, match="other tokens"):
        probed(lm).must_agree(probed(lm, "Review: {text} Sentiment:"))


def test_another_tokenizer_is_refused() -> None:
    lm, other = build(), build_fresh()
    other.tokenizer.backend_tokenizer.add_tokens(["film was"])
    with pytest.raises(ProbeMismatch, match="its tokenizer, template or software differs"):
        probed(lm).must_agree(probed(other))


def test_a_tokenizer_that_truncates_elsewhere_is_refused() -> None:
    lm = build()
    short = template(lm)
    object.__setattr__(short, "max_tokens", 128)
    with pytest.raises(ProbeMismatch, match="other tokens"):
        probed(lm).must_agree(probe_of(lm, short, short.labels(NAMES)))


def test_a_model_of_another_depth_is_refused() -> None:
    with pytest.raises(ProbeMismatch, match="has 3 layers, this client's 2"):
        probed(build()).must_agree(probed(build(num_hidden_layers=2)))


def test_an_overflow_is_refused_with_the_name_of_its_layer() -> None:
    activations = np.ones((len(TEXTS), 3, 2, 16), np.float32)
    activations[1, 2] = np.inf
    with pytest.raises(ProbeMismatch, match="layer 2 of this model gives numbers that are not finite"):
        Probe.of("0" * 64, activations)


def test_a_sketch_keeps_relative_distances() -> None:
    random = np.random.default_rng(0)
    activations = random.normal(size=(len(TEXTS), 50, 2, 576)).astype(np.float32)
    other = activations + 0.1 * random.normal(size=activations.shape).astype(np.float32)
    differences = Probe.of("0" * 64, activations).difference(Probe.of("0" * 64, other))
    assert 0.06 < differences.min() <= differences.max() < 0.17


@pytest.mark.parametrize("values", ["no base64!", "AAAA", "AADAfw==" * (len(TEXTS) * 2 * BUCKETS)])
def test_an_incomplete_or_infinite_probe_is_malformed(values: str) -> None:
    with pytest.raises(ValidationError):
        Probe(tokens="0" * 64, layers=1, values=values)


def test_a_probe_of_eighty_layers_is_small() -> None:
    probe = Probe.of("0" * 64, np.ones((len(TEXTS), 80, 2, 8192), np.float32))
    assert len(probe.model_dump_json()) < 28_000
