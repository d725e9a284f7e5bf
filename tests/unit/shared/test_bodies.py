"""Update bodies refuse label probabilities that are not probabilities."""

from __future__ import annotations

import numpy as np
import pytest

from ifed.errors import LayoutMismatch, Malformed, NonFinite
from ifed.messages.bodies import UpdateBody
from ifed.messages.rounds import ContributionMeta
from ifed.tensors.values import Float32

META = ContributionMeta(fingerprint="f" * 64, examples=10, version=0)


def round_trip(probabilities: Float32) -> Float32 | None:
    """Return the label probabilities that the aggregator reads from a body."""
    body = UpdateBody(None, np.eye(2, dtype=np.int64), META, label_probabilities=probabilities)
    return UpdateBody.from_bytes(body.to_bytes()).label_probabilities


def test_label_probabilities_are_transmitted_unchanged() -> None:
    read = round_trip(np.array([0.25, 0.75], np.float32))
    assert read is not None
    assert read.tolist() == [0.25, 0.75]


@pytest.mark.parametrize("values", [[-0.25, -1.0], [-0.5, 1.5], [0.2, 0.2], [3.0, 4.0]])
def test_values_that_do_not_form_a_distribution_are_refused(values: list[float]) -> None:
    with pytest.raises(Malformed, match="whose sum is 1"):
        round_trip(np.array(values, np.float32))


def test_probabilities_that_are_not_numbers_or_not_a_row_are_refused() -> None:
    with pytest.raises(NonFinite):
        round_trip(np.array([np.nan, 1.0], np.float32))
    with pytest.raises(LayoutMismatch):
        round_trip(np.array([[0.5, 0.5]], np.float32))
