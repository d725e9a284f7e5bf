"""Captured vectors against forward passes written out by hand, in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from ifed.errors import LayoutMismatch, Malformed
from ifed.modeling.extraction import context_vector
from ifed.modeling.language_model import LanguageModel
from ifed.tensors.values import ContextVector
from testing.random_models import ALL, CODE_PATHS, TEMPLATE, build, examples, template
from tests.unit.modeling.reference_forward import gemma3_by_hand, gpt2_by_hand, llama_by_hand

TOLERANCE = {"rtol": 2e-5, "atol": 2e-6}  # rotary angles and norms are float32 in the models


@pytest.mark.parametrize(("family", "by_hand"), [("llama", llama_by_hand), ("gemma3_text", gemma3_by_hand), ("gpt2", gpt2_by_hand)])
def test_captured_vectors_equal_a_forward_pass_written_by_hand(
    family: str, by_hand: Callable[[LanguageModel, Tensor], Tensor]
) -> None:
    lm = build(family, dtype=torch.float64)
    prompts = template(lm)
    labels = prompts.labels(["positive", "topic science"])
    demonstrations = [torch.tensor(prompts.demonstration(example.text, example.label, labels)) for example in examples()]
    expected = torch.stack([by_hand(lm, ids) for ids in demonstrations]).mean(0)
    actual = context_vector(lm, prompts, labels, examples(), layers=ALL)
    assert actual.values.dtype == np.float32
    np.testing.assert_allclose(actual.values, expected.numpy(), **TOLERANCE)


def test_a_demonstration_is_the_template_one_space_and_the_label() -> None:
    lm = build()
    prompts = template(lm)
    labels = prompts.labels(["positive", "topic science"])
    ids = prompts.demonstration("good film", 1, labels)
    assert list(ids) == lm.tokenizer(TEMPLATE.replace("{text}", "good film") + " topic science").input_ids


@pytest.mark.parametrize("family", CODE_PATHS)
def test_the_mean_does_not_depend_on_batches_or_order(family: str) -> None:
    lm = build(family, dtype=torch.float64)
    prompts = template(lm)
    labels = prompts.labels(["positive", "negative"])
    one_by_one = context_vector(lm, prompts, labels, examples(12), layers=ALL, token_budget=1)
    together = context_vector(lm, prompts, labels, examples(12)[::-1], layers=ALL, token_budget=10_000)
    np.testing.assert_allclose(one_by_one.values, together.values, **TOLERANCE)


def test_a_vector_of_some_layers_is_those_rows_of_the_full_vector() -> None:
    lm = build()
    prompts = template(lm)
    labels = prompts.labels(["positive", "negative"])
    full = context_vector(lm, prompts, labels, examples(), layers=ALL)
    assert context_vector(lm, prompts, labels, examples(), layers=[0, 1]) == ContextVector(full.values[:2])


def test_the_forward_pass_ends_at_the_last_requested_layer() -> None:
    lm = build()
    prompts = template(lm)
    ran: list[int] = []
    layers = lm.family.layers(lm.model)
    counters = [layer.register_forward_pre_hook(lambda *_, at=at: ran.append(at)) for at, layer in enumerate(layers)]
    context_vector(lm, prompts, prompts.labels(["positive", "negative"]), examples(), layers=[0, 1], token_budget=10_000)
    for counter in counters:
        counter.remove()
    assert ran == [0, 1]


def test_progress_counts_every_example() -> None:
    lm = build()
    prompts = template(lm)
    reports: list[tuple[int, int]] = []
    context_vector(
        lm, prompts, prompts.labels(["positive", "negative"]), examples(), layers=ALL, token_budget=40,
        progress=lambda done, total: reports.append((done, total)),
    )  # fmt: skip
    assert reports[-1] == (8, 8)
    assert [done for done, _ in reports] == sorted({done for done, _ in reports})


def test_no_examples_are_refused() -> None:
    lm = build()
    prompts = template(lm)
    with pytest.raises(Malformed, match="there are none"):
        context_vector(lm, prompts, prompts.labels(["positive", "negative"]), [], layers=ALL)


def test_a_layer_the_model_does_not_have_is_refused() -> None:
    lm = build()
    prompts = template(lm)
    with pytest.raises(LayoutMismatch, match="layers 0 to 2"):
        context_vector(lm, prompts, prompts.labels(["positive", "negative"]), examples(), layers=[0, 3])
