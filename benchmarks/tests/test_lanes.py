"""The simulated queue before lanes, on cases computed by hand; the fitted cost of passes; the overhead of injection."""

from __future__ import annotations

import pytest

from benchmarks.lanes.injection_overhead import ONE, SEVERAL, measure_overhead
from benchmarks.lanes.queue_simulation import Cost, fit_cost, simulate_waits
from ifed.modeling.batching import Row
from ifed.modeling.replicas import replicate
from testing.random_models import build


def test_the_cost_is_fitted_exactly_to_passes_on_a_line() -> None:
    cost = fit_cost([1, 3, 8], [32, 36, 46])
    assert (cost.fixed, cost.a_token) == (pytest.approx(30), pytest.approx(2))


def test_a_text_that_arrives_alone_takes_one_pass() -> None:
    rare = simulate_waits([10], Cost(30, 2), rate=0.001, lanes=2, budget=100, short=0, texts=50)
    assert rare == [pytest.approx(50)] * 50


def test_three_texts_at_once_are_two_passes_side_by_side_and_one_after_them() -> None:
    flood = simulate_waits([10], Cost(30, 2), rate=1e12, lanes=2, budget=100, short=0, texts=3)
    assert flood == [pytest.approx(50), pytest.approx(50), pytest.approx(100)]


def test_a_short_pass_is_not_left_to_busy_lanes() -> None:
    divided, undivided = (
        simulate_waits([10], Cost(50, 0.1), rate=60, lanes=2, budget=1000, short=short, texts=4000) for short in (0, 40)
    )
    assert undivided[len(undivided) // 2] < divided[len(divided) // 2]


def test_injection_is_compared_with_the_base_model_on_the_same_texts() -> None:
    lm = build("llama")
    rows = [Row.for_last_token((1, 2, 3, length)) for length in range(5, 17)]
    results = measure_overhead([lm, *replicate(lm, 2)[1:]], rows, 3, 0.2)
    assert [(row["texts"], row["injected"]) for row in results] == [(3, ONE), (3, SEVERAL)]
    for row in results:
        assert row["turns"] >= 2
        assert all(0 < low <= middle <= high for low, middle, high in (row["cpu"], row["clock"]))
