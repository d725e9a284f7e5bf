"""Bodies refuse what cannot be what they say it is."""

from __future__ import annotations

import numpy as np
import pytest

from ifed.errors import LayoutMismatch, Malformed, NonFinite
from ifed.messages.bodies import UpdateBody
from ifed.messages.rounds import ContributionMeta
from ifed.tensors.values import Float32

META = ContributionMeta(fingerprint="f" * 64, examples=10, version=0)


def sent(probabilities: Float32) -> Float32 | None:
    """What the aggregator reads of label probabilities."""
    body = UpdateBody(None, np.eye(2, dtype=np.int64), META, label_probabilities=probabilities)
    return UpdateBody.from_bytes(body.to_bytes()).label_probabilities


def test_mean_probabilities_of_labels_travel_as_they_are() -> None:
    found = sent(np.array([0.25, 0.75], np.float32))
    assert found is not None
    assert found.tolist() == [0.25, 0.75]


@pytest.mark.parametrize("told", [[-0.25, -1.0], [-0.5, 1.5], [0.2, 0.2], [3.0, 4.0]])
def test_what_are_no_probabilities_is_refused(told: list[float]) -> None:
    with pytest.raises(Malformed, match="whose sum is 1"):
        sent(np.array(told, np.float32))


def test_probabilities_that_are_not_numbers_or_not_a_row_are_refused() -> None:
    with pytest.raises(NonFinite):
        sent(np.array([np.nan, 1.0], np.float32))
    with pytest.raises(LayoutMismatch):
        sent(np.array([[0.5, 0.5]], np.float32))
