"""Robust means: numbers worked out by hand, order, bounds, breakdown, and four attackers."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ifed.errors import LayoutMismatch, NonFinite, WrongState
from ifed.tensors.values import Float64
from services.aggregator.aggregation.robust import (
    bounded,
    coordinate_median,
    geometric_median,
    multi_krum,
    nearest_neighbour_mixing,
    squared_distances,
    trimmed_mean,
)

HOSTILE = 3
CLIENTS = 11
Rule = Callable[[np.ndarray], Float64]
RULES: dict[str, Rule] = {
    "median": coordinate_median,
    "trimmed_mean": lambda rows: trimmed_mean(rows, HOSTILE),
    "multi_krum": lambda rows: multi_krum(rows, HOSTILE),
    "geometric_median": lambda rows: geometric_median(rows, np.ones(len(rows))),
    "mixing, then the mean": lambda rows: nearest_neighbour_mixing(rows, HOSTILE).mean(axis=0),
    "mixing, then the median": lambda rows: coordinate_median(nearest_neighbour_mixing(rows, HOSTILE)),
}
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
tables = arrays.arrays(np.float32, (CLIENTS, 5), elements=st.floats(-100, 100, width=32))


def rows(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)[:, None]


def test_the_median_and_the_trimmed_mean_are_those_worked_out_by_hand() -> None:
    assert coordinate_median(rows(1, 9, 2)).tolist() == [2]
    assert coordinate_median(rows(1, 9, 2, 4)).tolist() == [3]
    assert trimmed_mean(rows(-50, 1, 2, 6, 900), 1).tolist() == [(1 + 2 + 6) / 3]


def test_multi_krum_averages_those_closest_to_each_other() -> None:
    # n = 5, f = 1. Squared distances to the two nearest: 0 has 1 + 4, 1 has 1 + 1, 2 has 0.25 + 1, 2.5 has 0.25 + 2.25. Two are taken.
    assert multi_krum(rows(0, 1, 2, 2.5, 100), 1).tolist() == [1.5]


def test_the_geometric_median_lies_where_most_of_the_weight_is() -> None:
    assert geometric_median(rows(0, 1, 10), [1, 1, 1]) == pytest.approx(1, abs=1e-4)
    assert geometric_median(rows(0, 1, 10), [1, 1, 5]) == pytest.approx(10, abs=1e-4)
    corners = np.array([[0, 0], [0, 2], [2, 0], [2, 2]], np.float32)
    assert geometric_median(corners, np.ones(4)) == pytest.approx([1, 1])


def test_mixing_replaces_each_by_the_mean_of_its_nearest() -> None:
    mixed = nearest_neighbour_mixing(rows(0, 1, 2, 90), 1)
    assert sorted(mixed.ravel().tolist()) == [1, 1, 1, 31]


def test_a_norm_is_bounded_and_a_short_one_left_as_it_is() -> None:
    assert bounded(np.array([3.0, 4.0]), 1.0) == pytest.approx([0.6, 0.8])
    short = np.array([0.3, 0.4])
    assert bounded(short, 1.0) is short
    assert np.linalg.norm(bounded(np.full(3, 1e300), 2.0)) == pytest.approx(2.0)
    assert bounded(np.zeros(2), 1.0).tolist() == [0, 0]


@pytest.mark.parametrize(
    "refused",
    [
        lambda: trimmed_mean(rows(1, 2), 1),
        lambda: multi_krum(rows(1, 2, 3, 4), 1),
        lambda: nearest_neighbour_mixing(rows(1, 2), 1),
        lambda: geometric_median(rows(1, 2), [0, 0]),
        lambda: coordinate_median(np.empty((0, 3))),
        lambda: bounded(np.ones(2), 0.0),
    ],
)
def test_a_rule_refuses_before_it_divides_by_nothing(refused: Callable[[], object]) -> None:
    with pytest.raises(WrongState):
        refused()


def test_weights_that_do_not_fit_the_rows_are_refused() -> None:
    for weights in ([1.0], [1.0, -1.0]):
        with pytest.raises(LayoutMismatch):
            geometric_median(rows(1, 2), weights)


@each_rule
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_nan_attacker_is_refused_and_poisons_nothing(rule: Rule, poison: float) -> None:
    attacked = honest()
    attacked[2, 1] = poison
    with pytest.raises(NonFinite):
        rule(attacked)
    with pytest.raises(NonFinite):
        bounded(attacked[2].astype(np.float64), 1.0)


@each_rule
@given(table=tables, shuffler=st.randoms())
def test_the_order_of_contributions_changes_no_bit(rule: Rule, table: np.ndarray, shuffler: random.Random) -> None:
    order = list(range(CLIENTS))
    shuffler.shuffle(order)
    assert rule(table).tobytes() == rule(table[order]).tobytes()


@each_rule
@given(table=tables)
def test_an_aggregate_lies_between_the_least_and_the_greatest(rule: Rule, table: np.ndarray) -> None:
    aggregate = rule(table)
    assert (aggregate >= table.min(axis=0) - 1e-3).all()
    assert (aggregate <= table.max(axis=0) + 1e-3).all()


@each_rule
@given(value=arrays.arrays(np.float32, 4, elements=st.floats(-10, 10, width=32)))
def test_contributions_that_agree_are_the_aggregate(rule: Rule, value: np.ndarray) -> None:
    assert rule(np.tile(value, (CLIENTS, 1))) == pytest.approx(value.astype(np.float64), abs=1e-5)


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "geometric_median", "multi_krum", "mixing, then the median"])
@settings(max_examples=settings.default.max_examples // 2)
@given(poison=arrays.arrays(np.float32, (HOSTILE, 4), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_below_the_breakdown_point_no_poison_carries_the_aggregate_away(name: str, poison: np.ndarray) -> None:
    good = honest()[: CLIENTS - HOSTILE, :4]
    aggregate = RULES[name](np.vstack([good, poison]))
    spread = float(np.sqrt(squared_distances(good).max()))
    assert np.linalg.norm(aggregate - good.mean(axis=0)) <= 4 * spread


def test_at_the_breakdown_point_the_median_is_carried_away() -> None:
    robust = coordinate_median(rows(0, 0, 0, 1e9, 1e9))
    lost = coordinate_median(rows(0, 0, 1e9, 1e9, 1e9))
    assert (robust[0], lost[0]) == (0, 1e9)


def honest() -> np.ndarray:
    """Contributions around 1 with a spread of 0.1."""
    return np.random.default_rng(7).normal(1.0, 0.1, (CLIENTS, 40)).astype(np.float32)


def sign_flip(good: np.ndarray) -> np.ndarray:
    return np.tile(-good.mean(axis=0), (HOSTILE, 1))


def large_norm(good: np.ndarray) -> np.ndarray:
    return np.full((HOSTILE, good.shape[1]), 1e20, np.float32)


def alie(good: np.ndarray) -> np.ndarray:
    """A Little Is Enough (arXiv 1902.06156): inside the spread of the others, at one standard deviation."""
    return np.tile(good.mean(axis=0) - 1.0 * good.std(axis=0), (HOSTILE, 1))


@each_rule
@pytest.mark.parametrize("attack", [sign_flip, large_norm, alie])
def test_an_attacker_moves_a_robust_rule_by_no_more_than_the_honest_differ(
    rule: Rule, attack: Callable[[np.ndarray], np.ndarray], request: pytest.FixtureRequest
) -> None:
    if attack is large_norm and "then the mean" in request.node.callspec.id:
        return  # mixing alone leaves the attackers' own rows large; a robust rule follows it
    good = honest()[: CLIENTS - HOSTILE]
    aggregate = rule(np.vstack([good, attack(good)]).astype(np.float32))
    off = float(np.abs(aggregate - good.mean(axis=0)).max())
    limit = 2.0 if "then the mean" in request.node.callspec.id else 0.35
    assert off < limit
    if attack is not alie:
        plain = np.vstack([good, attack(good)]).mean(axis=0)
        assert off < np.abs(plain - good.mean(axis=0)).max()
