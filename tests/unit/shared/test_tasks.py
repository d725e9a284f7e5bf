"""A task's settings are validated."""

from __future__ import annotations

from itertools import pairwise

import pytest
from pydantic import ValidationError

from ifed.errors import LayoutMismatch
from ifed.messages.tasks import ModelIdentity, Policy, TaskSpec, resolve_layers

IDENTITY = ModelIdentity(name="tiny", fingerprint="ab" * 32, family="llama", num_layers=5, hidden_size=12)


def spec(**changes: object) -> TaskSpec:
    return TaskSpec.model_validate(
        {"name": "sentiment", "labels": ["no", "yes"], "template": "{text}\nIs it?", "model": "tiny", "groups": 4} | changes
    )


def test_the_upper_half_or_third_of_a_model_that_does_not_divide_is_the_larger_one() -> None:
    assert resolve_layers("upper_half", 5) == (2, 3, 4)
    assert resolve_layers("upper_third", 7) == (4, 5, 6)
    assert resolve_layers("upper_third", 30) == tuple(range(20, 30))
    assert resolve_layers("upper_third", 1) == (0,)
    assert resolve_layers("all", 3) == (0, 1, 2)
    assert resolve_layers([4, 0], 5) == (0, 4)


@pytest.mark.parametrize("layers", [[5], [1, 1]])
def test_layers_a_model_does_not_have_once_are_refused(layers: list[int]) -> None:
    with pytest.raises(LayoutMismatch):
        resolve_layers(layers, 5)


def test_a_layout_carries_the_shapes_of_all_tensors() -> None:
    layout = spec().layout(IDENTITY)
    assert layout.context_shape == (3, 2, 12)
    assert layout.coefficients_shape == (3, 2, 2, 4)


def test_groups_that_do_not_divide_the_hidden_size_are_refused_with_a_number_that_does() -> None:
    with pytest.raises(ValidationError, match=r"5 groups do not divide the hidden size 12 of tiny; try (4|6)"):
        spec(groups=5, identity=IDENTITY)


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": ["yes"]},
        {"labels": ["yes", "yes"]},
        {"labels": ["yes", " no"]},
        {"template": "no slot"},
        {"template": "{text} and {text}"},
        {"template": "{text}: "},
        {"name": "Bad Name"},
        {"groups": 0},
        {"unknown": 1},
        {"policy": {"rounds": 0}},
        {"policy": {"deadline_seconds": 1e300}},
        {"policy": {"deadline_seconds": float("inf")}},
        {"policy": {"initial_context_weight": float("nan")}},
        {"policy": {"holdout": 1.0}},
        {"layers": []},
        {"layers": "lower_half"},
    ],
)
def test_a_task_that_cannot_run_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        spec(**changes)


def test_the_cosine_schedule_falls_continuously_from_the_full_rate_to_zero() -> None:
    policy = Policy(rounds=4, learning_rate=0.04)
    rates = [policy.learning_rate_at(index) for index in range(4)]
    assert rates[0][0] == pytest.approx(0.04)
    assert rates[3][1] == pytest.approx(0.0)
    assert all(before[1] == after[0] for before, after in pairwise(rates))


def test_every_cycle_begins_again_with_the_full_rate() -> None:
    policy = Policy(rounds=6, cycle=3, learning_rate=0.04)
    rates = [policy.learning_rate_at(index) for index in range(6)]
    assert rates[:3] == rates[3:]
    assert rates[0][0] == pytest.approx(0.04)
    assert Policy(rounds=2, cycle=6).cycle_rounds == 2


def test_a_constant_schedule_keeps_the_rate() -> None:
    assert Policy(learning_rate=0.1, learning_rate_schedule="constant").learning_rate_at(3) == (0.1, 0.1)
