"""Each way of running faster against the plain way, on every family; and what rows share is run once."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ifed.modeling.attention import KVCache
from ifed.modeling.batching import Row
from ifed.modeling.calibration import Calibrator
from ifed.modeling.extraction import context_vector
from ifed.modeling.forward import TOKEN_MULTIPLE
from ifed.modeling.injection import Injection, injection_of
from ifed.modeling.language_model import LanguageModel, Options
from ifed.modeling.prefix_cache import PrefixCache, PrefixSharing
from ifed.modeling.scoring import ScoringItem, score
from tests.unit.modeling.builders import (
    ALL,
    FAMILY_NAMES,
    TEXTS,
    build,
    examples,
    random_coefficients,
    random_context,
    template,
)

families = pytest.mark.parametrize("family", FAMILY_NAMES)
PLAIN = Options(row_attention=False, share_prefix=False, sparse_last_mlp=False)
LONG = "the film was good and the plot was bad but we liked it a lot because of the acting Review: {text}\nSentiment:"
LABELS = ["positive", "topic sport", "topic science"]


def plain(lm: LanguageModel) -> LanguageModel:
    return replace(lm, options=PLAIN)


def injection(lm: LanguageModel, seed: int = 2) -> Injection:
    return injection_of(random_context(3, seed=seed), random_coefficients(3, 4, seed=seed), ALL, device="cpu", dtype=lm.dtype)


def items(lm: LanguageModel, given: Injection | None, words: str = LONG) -> list[ScoringItem]:
    prompts = template(lm, words)
    return [ScoringItem(prompts.prompt(text), prompts.labels(LABELS), given) for text in TEXTS]


@contextmanager
def counting(lm: LanguageModel) -> Iterator[list[int]]:
    """The tokens of each forward pass."""
    seen: list[int] = []
    hook = lm.model.base_model.register_forward_pre_hook(
        lambda _module, _arguments, keywords: seen.append(keywords["input_ids"].numel()), with_kwargs=True
    )
    yield seen
    hook.remove()


@pytest.mark.parametrize("chosen", ["row_attention", "share_prefix", "sparse_last_mlp"])
@families
def test_each_option_changes_no_score_beyond_rounding(family: str, chosen: str) -> None:
    lm = build(family)
    given = [*items(lm, injection(lm)), *items(lm, None), *items(lm, injection(lm, seed=7), "Review: {text}\nSentiment:")]
    on = replace(lm, options=replace(replace(PLAIN, row_attention=True), **{chosen: True}))
    for budget in (1, 200, 10_000):
        found, expected = (np.stack(score(one, given, token_budget=budget)) for one in (on, plain(lm)))
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@families
def test_the_options_together_change_neither_vector_nor_gradient_beyond_rounding(family: str) -> None:
    lm = build(family, dtype=torch.float64)
    prompts = template(lm, LONG)
    labels, vectors, gradients = prompts.labels(LABELS), [], []
    for one in (lm, plain(lm)):
        vectors.append(context_vector(one, prompts, labels, examples(labels=3), layers=[0, 1]).values)
        client = Calibrator(one, prompts, labels, examples(labels=3), random_context(3), ALL)
        gradients.append(client.mean_gradient(random_coefficients(3, 4), batch_size=8, seed=0).values)
    np.testing.assert_allclose(vectors[0], vectors[1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


def test_what_rows_share_is_run_once() -> None:
    lm = build()
    prompts, given, texts = template(lm, LONG), injection(lm), [text for text in TEXTS if text]
    found = [ScoringItem(prompts.prompt(text), prompts.labels(["positive", "negative"]), given) for text in texts]
    with counting(lm) as every:
        score(plain(lm), found, token_budget=10_000)
    with counting(lm) as shared:
        score(lm, found, token_budget=10_000)
    prefix = found[0].prompt.prefix_length
    assert prefix > 15
    assert {item.prompt.prefix_length for item in found} == {prefix}
    left = every[0] - len(texts) * prefix
    assert shared == [prefix, left + -left % TOKEN_MULTIPLE]


def test_a_kept_prefix_is_run_once_for_each_injection_and_goes_with_it() -> None:
    lm = build()
    prefixes, given = PrefixSharing(lm, persistent=True), injection(lm)
    with counting(lm) as seen:
        (first,) = score(lm, items(lm, given)[:1], prefixes=prefixes)
    with counting(lm) as again:
        (second,) = score(lm, items(lm, given)[:1], prefixes=prefixes)
    assert len(seen) == 2
    assert again == seen[1:], "the second time the prefix is there"
    assert np.array_equal(first, second)
    kept = prefixes.nbytes
    (other,) = score(lm, items(lm, injection(lm, seed=7))[:1], prefixes=prefixes)
    np.testing.assert_allclose(other, score(plain(lm), items(lm, injection(lm, seed=7))[:1])[0], rtol=1e-3, atol=1e-3)
    assert kept > 0
    gc.collect()
    assert prefixes.nbytes == kept, "the other injection is gone, and its prefix with it"


def test_prefixes_that_were_there_and_those_that_had_to_be_run_are_counted() -> None:
    lm = build()
    prefixes = PrefixSharing(lm, persistent=True)
    given = items(lm, injection(lm))[:2]
    for _ in range(3):
        score(lm, given, prefixes=prefixes)
    assert (prefixes.cache.misses, prefixes.cache.hits) == (1, 2), "rows of one call share what it found or ran"


def test_another_thread_may_ask_how_much_is_kept_while_injections_come_and_go() -> None:
    kept = PrefixCache(2**30)
    ended, problems = threading.Event(), list[Exception]()

    def ask() -> None:
        while not ended.is_set():
            try:
                assert kept.nbytes >= 0
            except RuntimeError as reason:  # a dictionary that changed while it was read
                problems.append(reason)

    asking = threading.Thread(target=ask)
    asking.start()
    prefix, scale = KVCache(1, {0: torch.zeros(4)}, {}), torch.ones(1, 2, 4)
    try:
        for _ in range(20):
            injections = [Injection((0,), scale, scale) for _ in range(200)]
            for one in injections:
                kept.put((1,), one, prefix)
            assert kept.nbytes >= len(injections) * prefix.nbytes
    finally:
        ended.set()
        asking.join()
    assert not problems


def test_a_row_counts_with_what_is_left_of_it_once_its_prefix_is_kept() -> None:
    lm = build()
    row = Row((1,) * 20, (19,), prefix_length=15)
    assert PrefixSharing(lm, persistent=True).remaining_tokens(row) == 5
    assert PrefixSharing(lm, persistent=True, min_length=16).remaining_tokens(row) == 20
    assert PrefixSharing(plain(lm), persistent=True).remaining_tokens(row) == 20


def test_no_more_is_kept_than_the_limit() -> None:
    lm = build()
    one = PrefixSharing(lm, persistent=True)
    score(lm, items(lm, None)[:1], prefixes=one)
    small = PrefixSharing(lm, persistent=True, max_bytes=one.nbytes + one.nbytes // 2)
    for words in (LONG, LONG.replace("film", "plot"), LONG.replace("film", "acting")):
        score(lm, items(lm, None, words)[:1], prefixes=small)
        assert 0 < small.nbytes <= one.nbytes + one.nbytes // 2


def test_a_prefix_larger_than_the_limit_is_used_for_its_rows_and_not_kept() -> None:
    lm = build()
    small = PrefixSharing(lm, persistent=True, max_bytes=1)
    with counting(lm) as seen:
        found = score(lm, items(lm, None)[:2], prefixes=small, token_budget=10_000)
    assert len(seen) == 2, "the prefix once, the rows after it"
    assert small.nbytes == 0
    np.testing.assert_allclose(np.stack(found), np.stack(score(plain(lm), items(lm, None)[:2])), rtol=1e-3, atol=1e-3)


@families
def test_a_kept_prefix_holds_no_more_memory_than_it_says(family: str) -> None:
    lm = build(family)
    prefixes = PrefixSharing(lm, persistent=True)
    score(lm, items(lm, None)[:1], prefixes=prefixes)
    parts = [part for one in prefixes.cache._bare.values() for kept in (one.keys, one.values) for part in kept.values()]
    assert prefixes.enabled == (family != "gemma2")
    assert len(parts) == (6 if prefixes.enabled else 0)
    assert sum(part.untyped_storage().nbytes() for part in parts) == prefixes.nbytes


def test_a_prefix_that_saves_too_little_is_not_run_by_itself() -> None:
    lm = build()
    with counting(lm) as seen:
        score(lm, items(lm, None, "{text}\nSentiment:"), token_budget=10_000)
    assert len(seen) == 1


def test_the_mlp_of_the_last_layer_runs_at_the_wanted_tokens_alone() -> None:
    lm = build()
    seen: list[int] = []
    mlps = [layer.get_submodule("mlp") for layer in lm.family.layers(lm.model)]
    hooks = [
        mlp.get_submodule("down_proj").register_forward_pre_hook(lambda _module, given: seen.append(given[0].shape[-2]))
        for mlp in (mlps[0], mlps[-1])
    ]
    prompts = template(lm)
    given = [ScoringItem(prompts.prompt(text), prompts.labels(["positive", "negative"]), None) for text in TEXTS]
    score(lm, given, token_budget=10_000)
    for hook in hooks:
        hook.remove()
    assert seen[0] > 5 * len(TEXTS)
    assert seen[1] == len(TEXTS)
    assert not any("forward" in mlp.__dict__ for mlp in mlps)


def test_a_calibration_batch_that_does_not_fit_into_memory_is_halved_and_gives_the_same_gradient() -> None:
    lm = build(dtype=torch.float64)
    prompts = template(lm)
    client = Calibrator(lm, prompts, prompts.labels(LABELS), examples(labels=3), random_context(3), ALL, token_budget=10_000)
    expected = client.mean_gradient(random_coefficients(3, 4), batch_size=8, seed=0)
    sizes: list[int] = []

    def too_much(_module: object, _arguments: object, keywords: dict[str, torch.Tensor]) -> None:
        sizes.append(keywords["input_ids"].numel())
        if sizes[-1] > 60:
            raise torch.OutOfMemoryError

    hook = lm.model.base_model.register_forward_pre_hook(too_much, with_kwargs=True)
    found = client.mean_gradient(random_coefficients(3, 4), batch_size=8, seed=0)
    hook.remove()
    assert max(sizes) > 60 >= min(sizes)
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-4, atol=1e-6)
    assert found.loss == pytest.approx(expected.loss)


def test_memory_that_runs_out_in_the_backward_pass_adds_nothing_twice() -> None:
    lm = build(dtype=torch.float64)
    prompts = template(lm)
    client = Calibrator(lm, prompts, prompts.labels(LABELS), examples(labels=3), random_context(3), ALL, token_budget=10_000)
    expected = client.mean_gradient(random_coefficients(3, 4), batch_size=8, seed=0)
    left = [1]

    def once(gradient: torch.Tensor) -> torch.Tensor:
        if left:
            left.pop()
            raise torch.OutOfMemoryError
        return gradient

    def watch(_module: object, _given: object, taken: Any) -> None:
        (taken[0] if isinstance(taken, tuple) else taken).register_hook(once)

    hook = lm.family.layers(lm.model)[0].register_forward_hook(watch)
    found = client.mean_gradient(random_coefficients(3, 4), batch_size=8, seed=0)
    hook.remove()
    assert not left
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-4, atol=1e-6)


def test_backward_keeps_no_weights_gradient_and_records_no_layer_below_the_first_injected() -> None:
    lm = build()
    prompts = template(lm)
    client = Calibrator(lm, prompts, prompts.labels(LABELS), examples(labels=3), random_context(2), (1, 2), cache_bytes=0)
    recorded: list[bool] = []
    hooks = [
        layer.register_forward_hook(
            lambda _module, _given, taken: recorded.append((taken[0] if isinstance(taken, tuple) else taken).requires_grad)
        )
        for layer in lm.family.layers(lm.model)
    ]
    client.mean_gradient(random_coefficients(2, 4), batch_size=8, seed=0)
    for hook in hooks:
        hook.remove()
    assert recorded == [False, True, True]
    assert all(parameter.grad is None for parameter in lm.model.parameters())


def test_backward_keeps_no_input_of_a_frozen_projection() -> None:
    lm = build()
    prompts = template(lm)
    client = Calibrator(lm, prompts, prompts.labels(LABELS), examples(labels=3), random_context(3), ALL)
    projections = [module for layer in lm.family.layers(lm.model) for module in layer.modules() if isinstance(module, nn.Linear)]

    def inputs_kept() -> int:
        entered: list[torch.Tensor] = []  # held, so that no memory is used a second time
        saved: list[torch.Tensor] = []
        hooks = [one.register_forward_pre_hook(lambda _module, given: entered.append(given[0])) for one in projections]
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
            client.mean_gradient(random_coefficients(3, 4), batch_size=8, seed=0)
        for hook in hooks:
            hook.remove()
        assert len(entered) >= len(projections)
        places = {tensor.untyped_storage().data_ptr() for tensor in saved}
        return sum(tensor.untyped_storage().data_ptr() in places for tensor in entered)

    assert inputs_kept() == 0
    lm.family.layers(lm.model)[1].get_submodule("mlp.down_proj").weight.requires_grad_(True)
    assert inputs_kept() == 1, "with a weight to train it would be"


def test_a_prefix_shorter_than_what_is_worth_keeping_is_not_cut_off() -> None:
    lm = build("llama")
    rows = len(items(lm, injection(lm))[0].prompt.ids)
    for least, passes in ((1, 2), (rows, 1)):
        with counting(lm) as seen, torch.inference_mode():
            score(
                lm, items(lm, injection(lm))[:1], token_budget=10_000, prefixes=PrefixSharing(lm, persistent=True, min_length=least)
            )
        assert len(seen) == passes
