"""Server optimisers against numbers worked out by hand from arXiv 2003.00295, and their properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ifed.errors import LayoutMismatch
from ifed.messages.tasks import OptimizerName
from services.aggregator.aggregation.server_optimizers import Moments, ServerOptimizer

NAMES: list[OptimizerName] = ["fedavg", "fedavgm", "fedadam", "fedyogi"]
vectors = arrays.arrays(np.float64, 3, elements=st.floats(-5, 5))


def steps(optimizer: ServerOptimizer, *updates: float) -> list[float]:
    """The value after each update, from 0."""
    value, moments, seen = np.zeros(1), None, []
    for update in updates:
        value, moments = optimizer.step(value, np.array([update]), moments)
        seen.append(float(value[0]))
    return seen


def test_fedavg_adds_the_mean_update() -> None:
    assert steps(ServerOptimizer("fedavg", 1.0), 2.0, 3.0) == [2.0, 5.0]
    assert steps(ServerOptimizer("fedavg", 0.5), 2.0, 3.0) == [1.0, 2.5]


def test_fedavgm_goes_on_where_it_went() -> None:
    # m: 2, then 0.9 · 2 + 3 = 4.8
    assert steps(ServerOptimizer("fedavgm", 1.0, momentum=0.9), 2.0, 3.0) == pytest.approx([2.0, 6.8])


def test_fedadam_is_algorithm_two_worked_out_by_hand() -> None:
    first = 0.1 * 2
    second = 0.99 * 0.001**2 + 0.01 * 4
    step = 0.5 * first / (math.sqrt(second) + 0.001)
    first, second = 0.9 * first + 0.1 * 3, 0.99 * second + 0.01 * 9
    two = step + 0.5 * first / (math.sqrt(second) + 0.001)
    assert steps(ServerOptimizer("fedadam", 0.5), 2.0, 3.0) == pytest.approx([step, two])


def test_fedyogi_is_algorithm_two_worked_out_by_hand() -> None:
    first = 0.1 * 2
    second = 0.001**2 + 0.01 * 4  # v < Δ², so it grows by (1 - β₂) Δ²
    step = 0.5 * first / (math.sqrt(second) + 0.001)
    first, second = 0.9 * first + 0.1 * 0.1, second - 0.01 * 0.01  # v > Δ², so it shrinks by that, whatever v is
    two = step + 0.5 * first / (math.sqrt(second) + 0.001)
    assert steps(ServerOptimizer("fedyogi", 0.5), 2.0, 0.1) == pytest.approx([step, two])


def test_only_fedavg_at_rate_one_is_plain_averaging() -> None:
    assert ServerOptimizer("fedavg", 1.0).plain
    assert not ServerOptimizer("fedavg", 0.5).plain
    assert not ServerOptimizer("fedavgm", 1.0).plain


@pytest.mark.parametrize("name", NAMES)
@given(start=vectors, updates=st.lists(vectors, max_size=6))
def test_every_step_is_finite_and_follows_the_sign_of_a_first_update(
    name: OptimizerName, start: np.ndarray, updates: list[np.ndarray]
) -> None:
    value, moments = start, None
    for index, update in enumerate(updates):
        after, moments = ServerOptimizer(name, 0.1).step(value, update, moments)
        assert np.isfinite(after).all()
        assert index > 0 or ((after - value) * update >= 0).all()
        value = after


@pytest.mark.parametrize("name", NAMES)
@given(start=vectors, update=vectors)
def test_a_step_changes_nothing_it_was_given(name: OptimizerName, start: np.ndarray, update: np.ndarray) -> None:
    moments = Moments(np.ones(3), np.ones(3))
    before = [array.copy() for array in (start, update, moments.first, moments.second)]
    ServerOptimizer(name, 0.1).step(start, update, moments)
    for was, now in zip(before, (start, update, moments.first, moments.second), strict=True):
        assert np.array_equal(was, now)


@pytest.mark.parametrize("name", NAMES)
def test_values_of_other_shapes_are_refused(name: OptimizerName) -> None:
    with pytest.raises(LayoutMismatch):
        ServerOptimizer(name, 1.0).step(np.zeros(2), np.zeros(3), None)
    with pytest.raises(LayoutMismatch):
        ServerOptimizer(name, 1.0).step(np.zeros(2), np.zeros(2), Moments(np.zeros(3)))
