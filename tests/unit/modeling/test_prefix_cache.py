"""KV caches of shared prefixes: computed once for each injection, and within the limit."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from ifed.modeling.attention import KVCache
from ifed.modeling.batching import Row
from ifed.modeling.forward import TOKEN_MULTIPLE
from ifed.modeling.injection import Injection, injection_of
from ifed.modeling.language_model import LanguageModel, Options
from ifed.modeling.prefix_cache import PrefixCache, PrefixSharing
from ifed.modeling.scoring import ScoringItem, score
from testing.random_models import (
    ALL,
    TEXTS,
    build,
    random_coefficients,
    random_context,
    template,
)

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
        for _ in range(10):
            injections = [Injection((0,), scale, scale) for _ in range(100)]
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


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "gpt2"])
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


def test_a_prefix_shorter_than_what_is_worth_keeping_is_not_cut_off() -> None:
    lm = build("llama")
    rows = len(items(lm, injection(lm))[0].prompt.ids)
    for least, passes in ((1, 2), (rows, 1)):
        with counting(lm) as seen, torch.inference_mode():
            score(
                lm, items(lm, injection(lm))[:1], token_budget=10_000, prefixes=PrefixSharing(lm, persistent=True, min_length=least)
            )
        assert len(seen) == passes
