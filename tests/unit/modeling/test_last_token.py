"""Injection at the last token: over cached keys and values it equals a full forward pass in which the prompt is left alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ifed.modeling.batching import Row
from ifed.modeling.calibration import Calibrator, LocalPlan
from ifed.modeling.extraction import context_vector
from ifed.modeling.forward import run_rows
from ifed.modeling.injection import Injection
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.prompt_cache import PromptCache
from ifed.modeling.scoring import ScoringItem, score, scoring_rows
from ifed.tensors.regression import LabelHead
from testing.random_models import (
    CODE_PATHS,
    FAMILY_NAMES,
    HIDDEN,
    LABELS,
    LONG_TEMPLATE,
    TEXTS,
    build,
    examples,
    forward_sizes,
    random_coefficients,
    random_context,
    random_injection,
    template,
)


def at_last_token(injection: Injection) -> Injection:
    return replace(injection, position="last_token")


def random_head(labels: int = 3) -> LabelHead:
    generator = np.random.default_rng(5)
    return LabelHead(generator.normal(size=(labels, HIDDEN)).astype(np.float32), np.zeros(labels, dtype=np.float32))


def calibrator(lm: LanguageModel, *, layers: tuple[int, ...] = (1, 2), position: str = "last_token", **options: Any) -> Calibrator:
    prompts, every = template(lm, LONG_TEMPLATE), examples(12, labels=3)
    return Calibrator(
        lm, prompts, prompts.labels(LABELS), every[:8], random_context(len(layers)), layers,
        held_out=every[8:], position=position, **options,
    )  # fmt: skip


def hidden_by_hand(lm: LanguageModel, ids: tuple[int, ...], first: int, injection: Injection) -> torch.Tensor:
    """Return the final states from position `first` on, the sites changed there alone, by plain hooks on one sequence."""
    hooks = []
    sites = [site for layer in injection.layers for site in lm.family.sites(lm.family.layers(lm.model)[layer])]
    for place, module in enumerate(sites):
        layer, site = divmod(place, 2)

        def change(_module: Any, _arguments: Any, output: Any, layer: int = layer, site: int = site) -> Any:
            activation = output[0] if isinstance(output, tuple) else output
            changed = activation.clone()
            changed[:, first:] = injection.shift[layer, site] + injection.scale[layer, site] * activation[:, first:]
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        hooks.append(module.register_forward_hook(change))
    try:
        with torch.no_grad():
            return lm.model.base_model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0, first:]
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_cached_prompts_give_what_a_full_forward_pass_gives(family: str) -> None:
    lm = build(family, dtype=torch.float64)
    injection = at_last_token(random_injection(lm))
    prompts = template(lm, LONG_TEMPLATE)
    for text in (TEXTS[0], TEXTS[2]):
        rows = scoring_rows(prompts.prompt(text), prompts.labels(LABELS))
        expected = [
            hidden_by_hand(lm, row.ids, len(prompts.prompt(text).ids) - 1, injection)[
                [at - row.prompt_end for at in row.output_positions]
            ]
            for row in rows
        ]
        head = random_head()
        items = [ScoringItem(prompts.prompt(text), None, injection, head)]
        np.testing.assert_allclose(score(lm, items)[0], head.log_probabilities(expected[0][:1].numpy())[0], rtol=1e-5, atol=1e-5)
        cache = PromptCache(lm, 0, rows, max_bytes=1 << 30)
        for activations in (cache, None):
            if activations is not None and not activations.enabled:
                continue
            actual = run_rows(lm, rows, [injection] * len(rows), activations=activations)
            for one, other in zip(actual, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", CODE_PATHS)
@pytest.mark.parametrize("through_head", [False, True])
def test_a_step_over_cached_prompts_has_the_gradient_of_full_passes(family: str, through_head: bool) -> None:
    lm = build(family, dtype=torch.float64)
    head = random_head() if through_head else None
    gradients = []
    for row_attention in (True, False):  # without it, every step runs whole prompts
        model = replace(lm, options=replace(lm.options, row_attention=row_attention, share_prefix=row_attention))
        client = calibrator(model, through_head=through_head)
        gradients.append(client.gradient_of(random_coefficients(2, 4), range(8), logit_adjustment=1.0, head=head).values)
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=1e-5, atol=1e-7)
    everywhere = calibrator(lm, through_head=through_head, position="all_tokens")
    other = everywhere.gradient_of(random_coefficients(2, 4), range(8), logit_adjustment=1.0, head=head).values
    assert np.abs(other - gradients[0]).max() > 1e-4, "injecting everywhere is something else"


def test_a_step_runs_one_token_a_text() -> None:
    lm = build()
    client = calibrator(lm, through_head=True)
    client.gradient_of(random_coefficients(2, 4), [0], head=random_head())  # fills the cache
    with forward_sizes(lm) as sizes:
        client.gradient_of(random_coefficients(2, 4), range(8), head=random_head())
    assert sizes == [8]


@pytest.mark.parametrize(("max_bytes", "on_disk", "tolerance"), [(1 << 30, False, 1e-6), (40_000, False, 2e-3), (0, True, 2e-3)])
def test_a_cache_beyond_its_memory_is_kept_in_16_bits_and_then_on_disk(
    tmp_path: Path, max_bytes: int, on_disk: bool, tolerance: float
) -> None:
    lm, coefficients, head = build(), random_coefficients(2, 4), random_head()
    expected = calibrator(lm, through_head=True).final_states(coefficients)
    client = calibrator(lm, through_head=True, cache_bytes=max_bytes, cache_folder=tmp_path)
    np.testing.assert_allclose(client.final_states(coefficients), expected, rtol=tolerance, atol=tolerance)
    client.gradient_of(coefficients, range(8), head=head)
    assert isinstance(client._activations, PromptCache)
    assert client._activations.on_disk is on_disk
    assert not list(tmp_path.iterdir()), "nothing that a crash could leave behind"


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_tasks_of_both_positions_heads_and_words_share_a_batch(family: str) -> None:
    lm = build(family)
    prompts = template(lm, LONG_TEMPLATE)
    everywhere, heads = random_injection(lm, seed=7), (random_head(), random_head(2))
    last = at_last_token(random_injection(lm))
    labels = prompts.labels(LABELS)
    kinds = [
        (labels, last, None),
        (None, last, heads[0]),
        (labels, everywhere, None),
        (None, None, heads[1]),
        (labels, last, heads[0]),
    ]
    items = [ScoringItem(prompts.prompt(text), *kinds[index % len(kinds)]) for index, text in enumerate(TEXTS * 2)]
    for item, together in zip(items, score(lm, items, token_budget=10_000), strict=True):
        np.testing.assert_allclose(together, score(lm, [item])[0], rtol=2e-3, atol=2e-3)


def test_words_and_head_together_are_the_mean_of_their_log_probabilities() -> None:
    lm, head = build(), random_head()
    prompts = template(lm)
    prompt, labels = prompts.prompt(TEXTS[0]), prompts.labels(LABELS)
    words, by_head, both = score(
        lm, [ScoringItem(prompt, labels, None), ScoringItem(prompt, None, None, head), ScoringItem(prompt, labels, None, head)]
    )
    mean = np.exp((words + by_head) / 2)
    np.testing.assert_allclose(np.exp(both), mean / mean.sum(), rtol=1e-5)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_context_vector_of_cached_prompts_is_that_of_full_passes_and_calibration_goes_on_with_the_cache(family: str) -> None:
    lm = build(family)
    if not lm.row_attention:
        pytest.skip("this family keeps no keys and values of prompts")
    prompts, texts = template(lm, LONG_TEMPLATE), examples(12, labels=3)[:8]
    rows = [Row.for_last_token(prompts.prompt(example.text).ids) for example in texts]
    cache, told = PromptCache(lm, 1, rows, max_bytes=1 << 30), []
    vector = context_vector(lm, prompts, None, texts, layers=(1, 2), prompts=cache, progress=lambda *done: told.append(done))
    np.testing.assert_allclose(vector.values, context_vector(lm, prompts, None, texts, layers=(1, 2)).values, atol=1e-5)
    assert told[-1] == (8, 8)
    coefficients, plan = random_coefficients(2, 4), LocalPlan(3, 4, 0.01, 0.0, 1.0, seed=1)
    with forward_sizes(lm) as sizes:
        reused = calibrator(lm, through_head=True, prompts=cache).run(coefficients, plan, head=random_head())
    assert max(sizes) <= 4, "no prompt was run again"
    fresh = calibrator(lm, through_head=True).run(coefficients, plan, head=random_head())
    np.testing.assert_allclose(reused.coefficients.values, fresh.coefficients.values, atol=1e-6)
    assert not cache.is_of(0, rows)
    assert not cache.is_of(1, rows[1:])
