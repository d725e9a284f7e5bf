"""Rows in batches: within the budget, in order, and with the results of single rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ifed.modeling.batching import Batch, BatchLayout, Row, group_by_budget, run_with_halving
from ifed.modeling.hooks import final_hidden
from testing.random_models import FAMILY_NAMES, ROUNDING, TEXTS, build, template

layouts = pytest.mark.parametrize("layout", ["packed", "padded"])


@given(lengths=st.lists(st.integers(1, 40), max_size=30), budget=st.integers(1, 100), layout=st.sampled_from(["packed", "padded"]))
def test_every_row_is_in_one_group_and_groups_keep_to_the_budget(lengths: list[int], budget: int, layout: BatchLayout) -> None:
    groups = group_by_budget(lengths, budget, layout)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        sizes = [lengths[index] for index in group]
        tokens = sum(sizes) if layout == "packed" else len(sizes) * max(sizes)
        assert tokens <= budget or len(group) == 1


def test_rows_of_similar_length_share_a_group() -> None:
    assert group_by_budget([9, 2, 8, 3], 18, "padded") == [[1, 3], [2, 0]]
    assert group_by_budget([9, 2, 8, 3], 13, "packed") == [[1, 3, 2], [0]]


def test_a_packed_batch_has_no_padding_and_restarts_positions() -> None:
    batch = Batch.of([Row((5, 6, 7), (1, 2)), Row((8,), (0,))], layout="packed")
    assert batch.input_ids.tolist() == [[5, 6, 7, 8]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0]]
    assert batch.row_of.tolist() == [[0, 0, 0, 1]]
    assert batch.attention_mask is None
    assert batch.output_indices.tolist() == [1, 2, 3]


def test_a_padded_batch_is_filled_up_on_the_right_and_masked() -> None:
    batch = Batch.of([Row((5, 6, 7), (1, 2)), Row((8,), (0,))], layout="padded", pad=9)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.row_of.tolist() == [[0, 0, 0], [1, 1, 1]]
    assert batch.output_indices.tolist() == [1, 2, 3]


@layouts
def test_arranging_undoes_splitting(layout: BatchLayout) -> None:
    batch = Batch.of([Row.for_last_token((5, 6, 7)), Row.for_last_token((8,))], layout=layout)
    parts = [torch.randn(3, 2), torch.randn(1, 2)]
    again = batch.split(batch.arrange(parts))
    assert all(torch.equal(part, other) for part, other in zip(parts, again, strict=True))


@pytest.mark.parametrize(
    ("family", "layout"), [*((family, "packed") for family in FAMILY_NAMES), ("llama", "padded"), ("gpt2", "padded")]
)
def test_a_batch_computes_what_single_rows_compute(family: str, layout: BatchLayout) -> None:
    lm = build(family)
    rows = [Row.for_last_token(template(lm).prompt(text).ids) for text in TEXTS] + [
        Row.for_last_token((7,)),
        Row.for_last_token((7,)),
    ]
    batch = Batch.of(rows, layout=layout, pad=3)
    with torch.no_grad():
        together = batch.split(final_hidden(lm, batch))
        for row, states in zip(rows, together, strict=True):
            alone = lm.model.base_model(input_ids=torch.tensor([row.ids]), use_cache=False).last_hidden_state[0]
            torch.testing.assert_close(states, alone, **ROUNDING)


def test_a_batch_that_does_not_fit_into_memory_is_halved_until_it_does() -> None:
    done: list[list[int]] = []

    def run(group: list[int]) -> None:
        if len(group) > 2:
            raise torch.OutOfMemoryError
        done.append(group)

    run_with_halving([0, 1, 2, 3, 4], run)
    assert done == [[0, 1], [2], [3, 4]]


def test_a_single_row_that_does_not_fit_is_an_error() -> None:
    def run(group: list[int]) -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        run_with_halving([0, 1], run)


def test_a_packed_batch_is_filled_up_by_a_row_without_output_positions() -> None:
    batch = Batch.of([Row.for_last_token((5, 6, 7)), Row.for_last_token((8, 9))], layout="packed", pad=1, multiple=4)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 1, 1, 1]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2]]
    assert batch.lengths == (3, 2, 3)
    assert batch.row_of.tolist() == [[0, 0, 0, 1, 1, 1, 1, 1]]
    assert batch.output_indices.tolist() == [2, 4]


def test_a_packed_batch_that_is_full_is_left_alone() -> None:
    batch = Batch.of([Row.for_last_token((5, 6, 7, 8))], layout="packed", multiple=4)
    assert batch.lengths == (4,)


def test_a_padded_batch_is_not_filled_up() -> None:
    batch = Batch.of([Row.for_last_token((5, 6, 7))], layout="padded", multiple=4)
    assert batch.input_ids.shape == (1, 3)
