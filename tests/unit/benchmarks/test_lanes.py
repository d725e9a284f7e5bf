"""The simulated queue before lanes, on cases worked out by hand, and the line through measured passes."""

from __future__ import annotations

import pytest

from benchmarks.lanes.queue import Cost, fitted, waits


def test_the_line_through_passes_that_lie_on_one() -> None:
    found = fitted([1, 3, 8], [32, 36, 46])
    assert (found.fixed, found.a_token) == (pytest.approx(30), pytest.approx(2))


def test_a_text_that_finds_nobody_takes_one_pass() -> None:
    rare = waits([10], Cost(30, 2), rate=0.001, lanes=2, budget=100, short=0, texts=50)
    assert rare == [pytest.approx(50)] * 50


def test_three_texts_at_once_are_two_passes_side_by_side_and_one_after_them() -> None:
    flood = waits([10], Cost(30, 2), rate=1e12, lanes=2, budget=100, short=0, texts=3)
    assert flood == [pytest.approx(50), pytest.approx(50), pytest.approx(100)]


def test_a_short_pass_is_not_left_to_busy_lanes() -> None:
    shared, whole = (waits([10], Cost(50, 0.1), rate=60, lanes=2, budget=1000, short=short, texts=4000) for short in (0, 40))
    assert whole[len(whole) // 2] < shared[len(shared) // 2]
