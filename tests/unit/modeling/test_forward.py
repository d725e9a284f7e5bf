"""Forward passes over many rows, and the cache of the activations below the first injected layer."""

from __future__ import annotations

import pytest
import torch

from ifed.modeling.batching import Batch, Row
from ifed.modeling.forward import ActivationCache, run_rows
from ifed.modeling.hooks import final_hidden
from testing.random_models import ROUNDING, TEXTS, build, template


@pytest.mark.parametrize("budget", [1, 30, 10_000])
def test_the_order_of_results_is_the_order_of_the_rows_whatever_the_budget(budget: int) -> None:
    lm = build(dtype=torch.float64)
    rows = [Row.for_last_token(template(lm).prompt(text).ids) for text in TEXTS]
    expected = [final_hidden(lm, Batch.of([row], layout="packed"))[0, -1:] for row in rows]
    for states, expected_states in zip(run_rows(lm, rows, [None] * len(rows), token_budget=budget), expected, strict=True):
        torch.testing.assert_close(states, expected_states, **ROUNDING)


@pytest.mark.parametrize(("first_layer", "limit", "used"), [(1, 10**9, True), (0, 10**9, False), (1, 100, False)])
def test_activations_are_cached_above_the_lowest_layer_and_within_the_limit(first_layer: int, limit: int, used: bool) -> None:
    lm = build()
    rows = [Row.for_last_token(template(lm).prompt(text).ids) for text in TEXTS]
    lower = ActivationCache(lm, first_layer, rows, max_bytes=limit)
    assert lower.enabled is used
    with_cache = run_rows(lm, rows, [None] * len(rows), activations=lower)
    without = run_rows(lm, rows, [None] * len(rows))
    for states, other in zip(with_cache, without, strict=True):
        torch.testing.assert_close(states, other)


def test_cached_lower_layers_are_not_computed_again() -> None:
    lm = build()
    rows = [Row.for_last_token(template(lm).prompt(text).ids) for text in TEXTS]
    lower = ActivationCache(lm, 2, rows, max_bytes=10**9)
    run_rows(lm, rows, [None] * len(rows), activations=lower)
    calls: list[int] = []
    counter = lm.family.layers(lm.model)[1].register_forward_hook(lambda *_: calls.append(1))
    attention = lm.family.sites(lm.family.layers(lm.model)[1])[0].register_forward_hook(lambda *_: calls.append(2))
    run_rows(lm, rows, [None] * len(rows), activations=lower)
    counter.remove()
    attention.remove()
    assert 2 not in calls
