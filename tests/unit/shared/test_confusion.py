"""Confusion counts travel as a table or as its cells, whichever is smaller, and come out as they were."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ifed.errors import LayoutMismatch
from ifed.messages.bodies import HeldOutCounts, UpdateBody
from ifed.messages.rounds import ContributionMeta
from ifed.tensors.confusion import confusion_tensors, read_confusion
from ifed.tensors.values import TensorBody

META = ContributionMeta(fingerprint="f" * 64, examples=100, version=1)
TABLES = st.integers(2, 40).flatmap(
    lambda labels: arrays.arrays(np.int64, (labels, labels), elements=st.integers(0, 10**6), fill=st.just(0))
)


@given(TABLES, st.sampled_from(["", "words_"]))
def test_counts_come_out_as_they_were_whether_many_or_few_cells_are_zero(table: np.ndarray, prefix: str) -> None:
    tensors = confusion_tensors(table, prefix)
    assert np.array_equal(read_confusion(TensorBody(tensors, {}), prefix), table)
    assert sum(tensor.nbytes for tensor in tensors.values()) <= table.nbytes / 2


def test_a_hundred_held_out_texts_of_a_thousand_labels_take_five_kilobytes_with_the_label_probabilities() -> None:
    generator = np.random.default_rng(0)
    table = np.zeros((1000, 1000), np.int64)
    np.add.at(table, (generator.integers(1000, size=100), generator.integers(1000, size=100)), 1)
    shares = np.full(1000, 1e-3, np.float32)
    body = UpdateBody(None, table, META, label_probabilities=shares, others={"words": HeldOutCounts(table)}).to_bytes()
    assert len(body) < 5_900  # of which 4,000 are the probabilities
    back = UpdateBody.from_bytes(body)
    assert np.array_equal(back.confusion, table)
    assert np.array_equal(back.others["words"].confusion, table)


def test_a_table_in_int64_of_an_earlier_agent_is_read() -> None:
    table = np.array([[3, 1], [0, 2**40]])
    assert np.array_equal(read_confusion(TensorBody({"confusion": table}, {})), table)


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ([[2, 3, 1], [0, 0, 1]], "2, 3 and 1 before 1 cells"),
        ([[1001, 1001, 0]], "up to 1000 labels"),
        ([[0, 0, 0]], "up to 1000 labels"),
        ([[9, 9, 2], [0, 0, 1]], "9, 9 and 2 before 1 cells"),
        ([[9, 9, 1], [9, 0, 1]], "labels below 9"),
        ([[9, 9, 1], [0, 9, 1]], "labels below 9"),
        ([[9, 9, 2], [4, 0, 1], [4, 0, 1]], "each once"),
        ([[9, 9, 2], [4, 1, 1], [4, 0, 1]], "row after row"),
        ([[9, 9, 1], [0, 0, 0]], "above 0"),
        ([[9, 9]], "rows of truth, prediction and count"),
        (np.zeros((0, 3)), "rows of truth, prediction and count"),
    ],
)
def test_cells_that_are_no_table_are_refused(cells: list[list[int]], words: str) -> None:
    with pytest.raises(LayoutMismatch, match=words):
        read_confusion(TensorBody({"confusion_cells": np.array(cells, dtype=np.uint16)}, {}))


def test_counts_that_come_twice_or_in_signed_cells_are_refused() -> None:
    table, cells = np.ones((2, 2), np.uint8), np.array([[2, 2, 0]], np.uint8)
    with pytest.raises(LayoutMismatch, match="has both"):
        read_confusion(TensorBody({"confusion": table, "confusion_cells": cells}, {}))
    with pytest.raises(LayoutMismatch, match="int64"):
        read_confusion(TensorBody({"confusion_cells": cells.astype(np.int64)}, {}))
