"""Sketches keep the angle between context vectors, and are the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from services.aggregator.aggregation.sketch import SIZE, comparison_key, sketch

SHAPE = (4, 2, 32)
# Subnormal numbers lose their digits when they are halved, so a vector of them does not keep its direction.
vectors = arrays.arrays(np.float32, SHAPE, elements=st.floats(-100, 100, width=32, allow_subnormal=False))


def drawn(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(9, 2, 640)).astype(np.float32)


@given(vectors)
def test_a_sketch_has_length_one_and_the_same_vector_the_same_sketch(values: np.ndarray) -> None:
    numbers = sketch(values)
    assert numbers.shape == (SIZE,)
    assert np.linalg.norm(numbers) == pytest.approx(1.0 if values.any() else 0.0)
    assert numbers.tobytes() == sketch(values.copy()).tobytes()


@given(vectors, st.floats(0.5, 8, width=32))
def test_the_size_of_a_vector_says_nothing(values: np.ndarray, factor: float) -> None:
    assert sketch(values * np.float32(factor)) == pytest.approx(sketch(values), abs=1e-3)


def test_the_projection_is_fixed_for_good() -> None:
    # Stored sketches stay comparable only while these numbers stay.
    numbers = sketch(np.arange(16, dtype=np.float32).reshape(2, 2, 4))
    assert numbers[:4] == pytest.approx(FIRST_FOUR, abs=1e-6)


def test_likeness_of_vectors_is_likeness_of_sketches() -> None:
    left, other = drawn(1), drawn(2)
    cosines = [float(sketch(left) @ sketch(left + share * other)) for share in (0.0, 0.3, 1.0, 3.0)]
    assert cosines == sorted(cosines, reverse=True)
    assert cosines == pytest.approx([1.0, 0.96, 0.71, 0.32], abs=0.25)
    assert float(sketch(left) @ sketch(-left)) == pytest.approx(-1)


def test_only_tasks_of_the_same_model_layers_tokens_and_groups_are_compared() -> None:
    same = ("a", [1, 2], 4)
    others = (("b", [1, 2], 4), ("a", [1, 3], 4), ("a", [1, 2], 8), (*same, "last_token"))
    assert len({comparison_key(*what) for what in (same, *others)}) == 5
    assert comparison_key(*same) == comparison_key(*same, "all_tokens")


FIRST_FOUR = [0.216496, -0.063428, -0.061062, 0.0454]
