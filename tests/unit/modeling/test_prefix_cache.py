"""KV caches of shared prefixes: computed once for each injection, and within the limit."""

from __future__ import annotations

import gc
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from ifed.modeling.attention import KVCache
from ifed.modeling.batching import Row
from ifed.modeling.forward import TOKEN_MULTIPLE
from ifed.modeling.injection import Injection
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.prefix_cache import PrefixCache, PrefixSharing
from ifed.modeling.scoring import ScoringItem, score
from testing.random_models import (
    LONG_TEMPLATE,
    PLAIN,
    TEXTS,
    build,
    forward_sizes,
    random_injection,
    scoring_items,
    template,
)


def plain(lm: LanguageModel) -> LanguageModel:
    return replace(lm, options=PLAIN)


def test_a_shared_prefix_is_run_once() -> None:
    lm = build()
    prompts, injected, texts = template(lm, LONG_TEMPLATE), random_injection(lm), [text for text in TEXTS if text]
    scored = [ScoringItem(prompts.prompt(text), prompts.labels(["positive", "negative"]), injected) for text in texts]
    with forward_sizes(lm) as every:
        score(plain(lm), scored, token_budget=10_000)
    with forward_sizes(lm) as shared:
        score(lm, scored, token_budget=10_000)
    prefix = scored[0].prompt.prefix_length
    assert prefix > 15
    assert {item.prompt.prefix_length for item in scored} == {prefix}
    left = every[0] - len(texts) * prefix
    assert shared == [prefix, left + -left % TOKEN_MULTIPLE]


def test_a_cached_prefix_is_run_once_for_each_injection_and_dropped_with_it() -> None:
    lm = build()
    prefixes, injected = PrefixSharing(lm, persistent=True), random_injection(lm)
    with forward_sizes(lm) as pass_sizes:
        (first,) = score(lm, scoring_items(lm, injected, LONG_TEMPLATE)[:1], prefixes=prefixes)
    with forward_sizes(lm) as again:
        (second,) = score(lm, scoring_items(lm, injected, LONG_TEMPLATE)[:1], prefixes=prefixes)
    assert len(pass_sizes) == 2
    assert again == pass_sizes[1:], "the second time the prefix is cached"
    assert np.array_equal(first, second)
    size = prefixes.nbytes
    (other,) = score(lm, scoring_items(lm, random_injection(lm, seed=7), LONG_TEMPLATE)[:1], prefixes=prefixes)
    np.testing.assert_allclose(
        other, score(plain(lm), scoring_items(lm, random_injection(lm, seed=7), LONG_TEMPLATE)[:1])[0], rtol=1e-3, atol=1e-3
    )
    assert size > 0
    gc.collect()
    assert prefixes.nbytes == size, "the other injection is gone, and its prefix with it"


def test_hits_and_misses_are_counted() -> None:
    lm = build()
    prefixes = PrefixSharing(lm, persistent=True)
    scored = scoring_items(lm, random_injection(lm), LONG_TEMPLATE)[:2]
    for _ in range(3):
        score(lm, scored, prefixes=prefixes)
    assert (prefixes.cache.misses, prefixes.cache.hits) == (1, 2), (
        "rows of one call share a KV cache, whether it was cached or computed"
    )


def test_another_thread_may_read_the_size_while_injections_come_and_go() -> None:
    cache = PrefixCache(2**30)
    ended, problems = threading.Event(), list[Exception]()

    def ask() -> None:
        while not ended.is_set():
            try:
                assert cache.nbytes >= 0
            except RuntimeError as reason:  # a dictionary that changed while it was read
                problems.append(reason)

    asking = threading.Thread(target=ask)
    asking.start()
    prefix, scale = KVCache(1, {0: torch.zeros(4)}, {}), torch.ones(1, 2, 4)
    try:
        for _ in range(10):
            injections = [Injection((0,), scale, scale) for _ in range(100)]
            for injected in injections:
                cache.put((1,), injected, prefix)
            assert cache.nbytes >= len(injections) * prefix.nbytes
    finally:
        ended.set()
        asking.join()
    assert not problems


def test_a_row_counts_without_its_prefix_once_that_is_cached() -> None:
    lm = build()
    row = Row((1,) * 20, (19,), prefix_length=15)
    assert PrefixSharing(lm, persistent=True).remaining_tokens(row) == 5
    assert PrefixSharing(lm, persistent=True, min_length=16).remaining_tokens(row) == 20
    assert PrefixSharing(plain(lm), persistent=True).remaining_tokens(row) == 20


def test_the_cache_stays_within_its_limit() -> None:
    lm = build()
    sharing = PrefixSharing(lm, persistent=True)
    score(lm, scoring_items(lm, None, LONG_TEMPLATE)[:1], prefixes=sharing)
    small = PrefixSharing(lm, persistent=True, max_bytes=sharing.nbytes + sharing.nbytes // 2)
    for template_text in (LONG_TEMPLATE, LONG_TEMPLATE.replace("film", "plot"), LONG_TEMPLATE.replace("film", "acting")):
        score(lm, scoring_items(lm, None, template_text)[:1], prefixes=small)
        assert 0 < small.nbytes <= sharing.nbytes + sharing.nbytes // 2


def test_a_prefix_larger_than_the_limit_is_used_for_its_rows_and_not_cached() -> None:
    lm = build()
    small = PrefixSharing(lm, persistent=True, max_bytes=1)
    with forward_sizes(lm) as pass_sizes:
        actual = score(lm, scoring_items(lm, None, LONG_TEMPLATE)[:2], prefixes=small, token_budget=10_000)
    assert len(pass_sizes) == 2, "the prefix once, the rows after it"
    assert small.nbytes == 0
    np.testing.assert_allclose(
        np.stack(actual), np.stack(score(plain(lm), scoring_items(lm, None, LONG_TEMPLATE)[:2])), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "gpt2"])
def test_a_cached_prefix_holds_no_more_memory_than_its_nbytes(family: str) -> None:
    lm = build(family)
    prefixes = PrefixSharing(lm, persistent=True)
    score(lm, scoring_items(lm, None, LONG_TEMPLATE)[:1], prefixes=prefixes)
    parts = [
        part
        for kv_cache in prefixes.cache._bare.values()
        for tensors in (kv_cache.keys, kv_cache.values)
        for part in tensors.values()
    ]
    assert prefixes.enabled == (family != "gemma2")
    assert len(parts) == (6 if prefixes.enabled else 0)
    assert sum(part.untyped_storage().nbytes() for part in parts) == prefixes.nbytes


def test_a_prefix_that_saves_too_little_is_not_run_by_itself() -> None:
    lm = build()
    with forward_sizes(lm) as pass_sizes:
        score(lm, scoring_items(lm, None, "{text}\nSentiment:"), token_budget=10_000)
    assert len(pass_sizes) == 1


def test_a_prefix_shorter_than_the_minimum_is_not_replaced() -> None:
    lm = build("llama")
    rows = len(scoring_items(lm, random_injection(lm), LONG_TEMPLATE)[0].prompt.ids)
    for least, passes in ((1, 2), (rows, 1)):
        with forward_sizes(lm) as pass_sizes, torch.inference_mode():
            score(
                lm,
                scoring_items(lm, random_injection(lm), LONG_TEMPLATE)[:1],
                token_budget=10_000,
                prefixes=PrefixSharing(lm, persistent=True, min_length=least),
            )
        assert len(pass_sizes) == passes
