"""Replicas of a model: what they share, what not, and that several threads may run them at once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from ifed.modeling.batching import Batch, Row
from ifed.modeling.hooks import final_hidden, inject
from ifed.modeling.injection import Injection, injection_of
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.prefix_cache import PrefixCache, PrefixSharing
from ifed.modeling.replicas import divide_threads, replica, replicate
from ifed.modeling.scoring import ScoringItem, score
from testing.random_models import ALL, CODE_PATHS, TEXTS, build, random_coefficients, random_context, template

LABELS = ["positive", "topic sport"]


def injection(lm: LanguageModel, seed: int) -> Injection:
    return injection_of(random_context(3, seed=seed), random_coefficients(3, 4, seed=seed), ALL, device="cpu", dtype=lm.dtype)


def items(lm: LanguageModel, injected: Injection | None) -> list[ScoringItem]:
    prompts = template(lm)
    return [ScoringItem(prompts.prompt(text), prompts.labels(LABELS), injected) for text in TEXTS if text]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("family", CODE_PATHS)
def test_replicas_share_their_tensors_and_no_module(family: str) -> None:
    lm = build(family)
    other = replica(lm)
    for parameter, same in ((lm.model.parameters(), other.model.parameters()), (lm.model.buffers(), other.model.buffers())):
        assert all(tensor is shared for tensor, shared in zip(parameter, same, strict=True))
    assert not set(map(id, lm.model.modules())) & set(map(id, other.model.modules()))
    assert other.model.get_input_embeddings().weight is lm.model.get_input_embeddings().weight
    assert (other.fingerprint, other.row_attention) == (lm.fingerprint, lm.row_attention)
    assert len(replicate(lm, 3)) == 3


def test_an_injection_into_one_replica_leaves_the_other_bare() -> None:
    lm = build()
    other = replica(lm)
    batch = Batch.of([Row.for_last_token((1, 2, 3, 4))], layout="packed")
    with torch.inference_mode():
        bare = final_hidden(other, batch)
        with inject(lm, injection(lm, 1)):
            assert torch.equal(final_hidden(other, batch), bare)
            with inject(other, injection(lm, 2)):
                assert not torch.equal(final_hidden(other, batch), bare)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_replicas_in_separate_threads_compute_what_one_computes_alone(family: str) -> None:
    lm = build(family)
    cache = PrefixCache(2**20)
    scored = [items(lm, injected) for injected in (injection(lm, 1), injection(lm, 2), None)]
    expected = [np.stack(score(lm, row)) for row in scored]
    both = replicate(lm, 3)

    def run(place: int) -> list[np.ndarray]:
        scored_there = both[place]
        prefixes = PrefixSharing(scored_there, persistent=True, cache=cache)
        return [np.stack(score(scored_there, scored[(place + turn) % 3], prefixes=prefixes)) for turn in range(6)]

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(run, range(3)))
    for place, scores in enumerate(results):
        for turn, row in enumerate(scores):
            np.testing.assert_allclose(row, expected[(place + turn) % 3], rtol=1e-4, atol=1e-4)
            np.testing.assert_array_equal(row, scores[turn % 3] if turn > 2 else row)


@pytest.mark.usefixtures("threads")
def test_replicas_divide_the_threads() -> None:
    lm = build()
    for replicas, threads, expected in ((None, 1, (1, 1)), (None, 2, (2, 1)), (None, 16, (4, 4)), (2, 8, (2, 4)), (3, 1, (3, 1))):
        assert (divide_threads(lm, replicas, threads), torch.get_num_threads()) == expected
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == 1
