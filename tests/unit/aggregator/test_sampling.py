"""Who a round asks: a draw that anyone can repeat, of the size the policy says."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from services.aggregator.domain.schedule import sample, seed_of
from testing.factories import policy

names = st.lists(st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True), unique=True, max_size=30)


@given(names, st.integers(0, 40), st.integers(0, 2**31 - 1))
def test_a_draw_is_of_its_size_and_the_same_in_whatever_order_members_come(members: list[str], count: int, seed: int) -> None:
    drawn = sample(members, count, seed)
    assert len(set(drawn)) == len(drawn) == min(count, len(members))
    assert set(drawn) <= set(members)
    assert drawn == sorted(drawn) == sample(members[::-1], count, seed)


@given(names, st.integers(1, 10), st.integers(0, 2**31 - 1))
def test_a_member_that_leaves_changes_nobody_elses_place(members: list[str], count: int, seed: int) -> None:
    drawn = sample(members, count, seed)
    stayed = [member for member in members if member not in drawn[:1]]
    assert set(drawn[1:]) <= set(sample(stayed, count, seed))


def test_over_many_rounds_everyone_is_asked_about_equally_often() -> None:
    members = [f"c{number}" for number in range(10)]
    asked = Counter(client for number in range(1000) for client in sample(members, 3, seed_of("sentiment", number)))
    assert all(240 < asked[member] < 360 for member in members)


@pytest.mark.parametrize(
    ("changes", "members", "asked"),
    [
        ({}, 7, 7),
        ({"sample": 3}, 7, 3),
        ({"sample": 3}, 2, 2),
        ({"sample_fraction": 0.3}, 10, 3),
        ({"sample_fraction": 0.01}, 10, 1),
    ],
)
def test_the_policy_says_how_many_are_asked(changes: dict[str, object], members: int, asked: int) -> None:
    assert policy(**changes).sampled(members) == asked


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sample": 3, "sample_fraction": 0.5}, "set one of them"),
        ({"sample": 3, "quorum": 4, "clients_expected": 10}, "a quorum of 4 cannot come from a sample of 3"),
        ({"sample": 3, "clients_expected": 10, "aggregation": "multi_krum"}, "needs 5 contributions"),
    ],
)
def test_a_sample_that_could_not_close_a_round_is_refused_by_name(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        policy(**changes)
