"""Which texts share a forward pass, on sizes worked out by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.inference.engine import choose_batch, lane_share


def test_packed_texts_are_taken_in_turn_while_they_fit() -> None:
    assert choose_batch([60, 50, 30, 10], 100, padded=False) == [0, 2, 3]


def test_padded_texts_are_taken_by_nearness_to_the_first() -> None:
    assert choose_batch([10, 40, 12, 11, 9], 44, padded=True) == [0, 3, 4]


def test_a_first_text_beyond_the_budget_runs_alone() -> None:
    assert choose_batch([200, 1], 100, padded=False) == [0]
    assert choose_batch([200, 1], 100, padded=True) == [0]


def test_nothing_waiting_is_no_batch() -> None:
    assert choose_batch([], 100, padded=True) == []


@given(st.lists(st.integers(1, 300), min_size=1, max_size=50), st.integers(1, 600), st.booleans())
def test_the_first_always_runs_and_the_budget_always_holds(sizes: list[int], budget: int, padded: bool) -> None:
    chosen = choose_batch(sizes, budget, padded=padded)
    assert chosen[0] == 0
    assert chosen == sorted(set(chosen))
    taken = [sizes[index] for index in chosen]
    cost = max(taken) * len(taken) if padded else sum(taken)
    assert len(chosen) == 1 or cost <= budget


def test_idle_lanes_have_a_part_each() -> None:
    assert lane_share(90, idle=1, lanes=2, budget=512, short=64) == 45
    assert lane_share(91, idle=2, lanes=4, budget=512, short=0) == 31


def test_a_lane_takes_a_short_pass_whole_where_the_others_are_busy() -> None:
    assert lane_share(90, idle=0, lanes=2, budget=512, short=64) == 64
    assert lane_share(300, idle=0, lanes=2, budget=512, short=64) == 150
    assert lane_share(90, idle=0, lanes=1, budget=512, short=64) == 90


def test_no_share_is_over_the_budget() -> None:
    assert lane_share(9000, idle=0, lanes=2, budget=512, short=64) == 512
    assert lane_share(9000, idle=1, lanes=2, budget=512, short=9000) == 512
