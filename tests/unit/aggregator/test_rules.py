"""The rule a policy names, the steps before it, and what a round makes of it."""

from __future__ import annotations

import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ifed.errors import LayoutMismatch, WrongState
from ifed.messages.bodies import UpdateBody, read_coefficients
from ifed.messages.enums import RoundKind
from ifed.messages.rounds import ContributionMeta
from ifed.messages.tasks import AggregationRule, Policy
from ifed.tensors.quantization import QuantizedUpdate, UpdateDType
from ifed.tensors.values import Gradient, TensorBody
from services.aggregator.aggregation.accumulators import AggregationResult, RoundAccumulator, StartingVersion
from services.aggregator.aggregation.rules import RULES, Reducer
from testing.factories import FINGERPRINT, coefficients, policy, round_, update_body

ROBUST = sorted(set(RULES) - {"weighted_mean"})


def named(rule: str, *, mixing: bool = False, **changes: object) -> Policy:
    steps = {"nearest_neighbour_mixing": True} if mixing else {}
    return policy(aggregation=rule, clients_expected=10, **steps, **changes)


def combined(rules: Policy, *parts: tuple[float, int], origin: float | None = None) -> float:
    combination = Reducer(rules, None if origin is None else np.array([origin]))
    for value, weight in parts:
        combination.add(np.array([value], np.float32), weight)
    return float(combination.value()[0])


def test_a_weight_counts_up_to_its_cap() -> None:
    assert combined(policy(), (0.0, 1), (4.0, 3)) == 3
    assert combined(policy(weight_cap=1), (0.0, 1), (4.0, 3)) == 2
    boastful = Reducer(policy(weight_cap=5))
    boastful.add(np.ones(1), 1_000_000_000)
    boastful.add(np.zeros(1), 5)
    assert (float(boastful.value()[0]), boastful.examples) == (0.5, 1_000_000_005)


@pytest.mark.parametrize("rule", ["median", "trimmed_mean", "multi_krum"])
def test_a_claimed_weight_buys_no_influence_on_rules_that_count_clients(rule: str) -> None:
    parts = [(float(value), 1) for value in range(10)]
    assert combined(named(rule), *parts) == combined(named(rule), *parts[:-1], (9.0, 9999))


def test_an_update_is_bounded_by_its_distance_from_the_start() -> None:
    bounded = policy(norm_bound=0.5)
    assert combined(bounded, (1.25, 1), (9.0, 1), origin=1.0) == pytest.approx(1 + (0.25 + 0.5) / 2)
    assert combined(bounded, (1.25, 1), (9.0, 1)) == pytest.approx((1.25 + 9) / 2)


# Of the rules' own arithmetic, test_robust checks the same bit for bit.
@pytest.mark.parametrize(("rule", "mixing"), [("weighted_mean", False), ("weighted_mean", True), ("geometric_median", True)])
@given(st.lists(st.tuples(st.floats(-10, 10, width=32), st.integers(1, 50)), min_size=10, max_size=10), st.randoms())
def test_every_rule_gives_the_same_whatever_order_contributions_came_in(
    rule: str, mixing: bool, parts: list[tuple[float, int]], shuffler: random.Random
) -> None:
    shuffled = shuffler.sample(parts, len(parts))
    rules = named(rule, mixing=mixing)
    assert combined(rules, *parts) == pytest.approx(combined(rules, *shuffled), abs=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_a_combination_keeps_the_shape_and_refuses_another(rule: str) -> None:
    combination = Reducer(named(rule))
    for _ in range(10):
        combination.add(coefficients(2.0).values, 1)
    assert combination.value() == pytest.approx(np.full(coefficients().values.shape, 2.0))
    with pytest.raises(LayoutMismatch):
        combination.add(np.zeros(3, np.float32), 1)


@pytest.mark.parametrize("rule", RULES)
def test_there_is_no_aggregate_of_nothing(rule: str) -> None:
    with pytest.raises(WrongState):
        Reducer(named(rule)).value()


def test_the_memory_of_a_mean_does_not_grow_with_contributions() -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        combination = Reducer(policy(norm_bound=1.0), np.zeros(10_000))
        for _ in range(count):
            combination.add(np.ones(10_000, np.float32), 1)
        combination.value()
        largest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return largest

    assert peak(400) < 1.2 * peak(20)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"aggregation": "mode"}, "aggregation"),
        ({"aggregation": "fedavg"}, "aggregation"),
        ({"server_optimizer": "sgd"}, "server_optimizer"),
        ({"byzantine_fraction": 0.5, "aggregation": "trimmed_mean"}, "byzantine_fraction"),
        ({"aggregation": "multi_krum", "clients_expected": 4}, "needs 5 contributions"),
        ({"aggregation": "trimmed_mean", "clients_expected": 9, "quorum": 2}, "'trimmed_mean' .* needs 3 contributions"),
        ({"mode": "gradient", "update_dtype": "int8"}, "update_dtype 'int8' is for mode 'coefficients'"),
        ({"update_dtype": "int2"}, "update_dtype"),
        ({"nearest_neighbour_mixing": True}, "'weighted_mean' with nearest_neighbour_mixing .* needs 3"),
    ],
)
def test_a_policy_that_could_not_aggregate_is_refused_by_name(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Policy.model_validate(changes)


def test_the_servers_rate_is_one_for_averages_and_else_the_learning_rate() -> None:
    assert policy().server_rate_at(1) == 1
    assert policy(server_optimizer="fedadam", learning_rate=0.5).server_rate_at(1) == 0.5
    falling = policy(mode="gradient", learning_rate=0.5, rounds=2)
    assert [falling.server_rate_at(index) for index in (0, 1)] == pytest.approx([0.5, 0.25])
    assert policy(server_learning_rate=0.3).server_rate_at(1) == 0.3


def start(value: float = 1.0, moments: bytes | None = None) -> StartingVersion:
    return StartingVersion(TensorBody({"coefficients": coefficients(value).values}, {}).to_bytes(), moments)


def calibrated(rules: Policy, starting_version: StartingVersion, *values: float) -> tuple[float, AggregationResult]:
    """A calibration round's aggregate at one place, of updates or gradients that are `values` everywhere."""
    accumulator = RoundAccumulator(round_(kind=RoundKind.CALIBRATION), 2, rules, starting_version)
    for value in values:
        body = update_body(value) if rules.mode == "coefficients" else gradient_body(value)
        accumulator.add(10, body)
    result = accumulator.summed()
    assert result.body is not None
    return float(read_coefficients(TensorBody.from_bytes(result.body)).values.flat[0]), result


def gradient_body(value: float, scores: list[float] | None = None) -> bytes:
    meta = ContributionMeta(fingerprint=FINGERPRINT, examples=10, version=0)
    gradient = Gradient(np.full_like(coefficients().values, value))
    probabilities = None if scores is None else np.array(scores, np.float32)
    return UpdateBody(gradient, np.array([[1, 0], [0, 3]]), meta, label_probabilities=probabilities).to_bytes()


def test_in_gradient_mode_the_server_steps_against_the_mean_gradient() -> None:
    rules = policy(mode="gradient", learning_rate=0.5, learning_rate_schedule="constant")
    assert calibrated(rules, start(1.0), 0.2, 0.6)[0] == pytest.approx(1.0 - 0.5 * 0.4)


def test_momentum_is_kept_from_round_to_round() -> None:
    rules = policy(server_optimizer="fedavgm", server_momentum=0.5)
    first, result = calibrated(rules, start(1.0), 2.0)
    second, _ = calibrated(rules, start(first, result.moments), 2.0)
    assert (first, second) == (2.0, 2.0 + 0.5 * 1.0)


@pytest.mark.parametrize("optimizer", ["fedadam", "fedyogi"])
def test_second_moments_are_kept_from_round_to_round(optimizer: str) -> None:
    rules = policy(server_optimizer=optimizer)
    _, result = calibrated(rules, start(1.0), 2.0)
    assert result.moments is not None
    assert set(TensorBody.from_bytes(result.moments).tensors) == {"first", "second"}
    assert calibrated(rules, start(1.0, result.moments), 2.0)[1].body != calibrated(rules, start(1.0), 2.0)[1].body


def test_plain_fedavg_is_the_mean_itself_and_remembers_nothing() -> None:
    value, result = calibrated(policy(), start(0.1), 0.3, 0.7)
    assert value == np.float32(0.5)
    assert result.moments is None


@pytest.mark.parametrize("dtype", ["float16", "int8", "int4"])
def test_a_change_counts_as_the_coefficients_it_leads_to(dtype: UpdateDType) -> None:
    meta = ContributionMeta(fingerprint=FINGERPRINT, examples=10, version=0)
    accumulator = RoundAccumulator(round_(kind=RoundKind.CALIBRATION), 2, policy(update_dtype=dtype, norm_bound=1.0), start(1.0))
    for value in (0.01, 50.0):  # the second is bounded to a length of 1
        change = QuantizedUpdate.of(np.full_like(coefficients().values, value), dtype)
        accumulator.add(10, UpdateBody(change, np.array([[1, 0], [0, 3]]), meta).to_bytes())
    result = accumulator.summed()
    assert result.body is not None
    coefficients_ = read_coefficients(TensorBody.from_bytes(result.body)).values
    assert coefficients_ == pytest.approx(np.full_like(coefficients_, 1 + (0.01 + 1 / coefficients_.size**0.5) / 2), rel=1e-3)


@pytest.mark.parametrize("rule", ROBUST)
@pytest.mark.parametrize("mode", ["coefficients", "gradient"])
def test_a_robust_rule_holds_through_a_whole_round(rule: AggregationRule, mode: str) -> None:
    rules = named(rule, mode=mode, byzantine_fraction=0.2) if rule in ("trimmed_mean", "multi_krum") else named(rule, mode=mode)
    honest, poison = [1.0 + 0.01 * index for index in range(8)], [-1e6, 1e6]
    clean = calibrated(rules, start(1.0), *honest, 1.03, 1.04)[0]
    assert calibrated(rules, start(1.0), *honest, *poison)[0] == pytest.approx(clean, abs=0.02)


def test_label_probabilities_are_averaged_over_held_out_examples() -> None:
    accumulator = RoundAccumulator(round_(kind=RoundKind.CALIBRATION), 2, policy(mode="gradient"), start())
    accumulator.add(10, gradient_body(0.1, [0.5, 0.5]))
    accumulator.add(99, gradient_body(0.1, [0.25, 0.75]))
    evaluation = accumulator.summed().evaluation
    assert evaluation is not None
    # Of eight held-out examples two carry the first label.
    assert evaluation.label_bias == pytest.approx(np.log([0.375 / 0.3, 0.625 / 0.7]))
