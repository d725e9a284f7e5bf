"""Quantised updates: the error is bounded and carried over (error feedback), and malformed updates are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ifed.errors import LayoutMismatch, Malformed, NonFinite
from ifed.messages.bodies import HeadBody, UpdateBody
from ifed.messages.rounds import ContributionMeta
from ifed.tensors.confidence import ConfidenceBin, ConfidenceBins
from ifed.tensors.quantization import (
    QuantizedRows,
    QuantizedUpdate,
    UpdateDType,
    pack_four_bits,
    rows_dtype,
    unpack_four_bits,
    with_feedback,
)
from ifed.tensors.updates import read_update
from ifed.tensors.values import TensorBody

COMPACT: tuple[UpdateDType, ...] = ("float16", "int8", "int4")
CHANGES = arrays.arrays(np.float32, (2, 2, 2, 3), elements=st.floats(-1e4, 1e4, width=32))
META = ContributionMeta(fingerprint="f" * 64, examples=1_000_000_000, version=10_000, loss=0.12345678901234567, seconds=123.456)


def test_int8_is_in_steps_of_the_largest_change_by_127() -> None:
    change = np.zeros((1, 2, 2, 3), np.float32)
    change[0, 0, 0] = [1.27, -0.014, 0.006]
    sent = QuantizedUpdate.of(change, "int8")
    assert sent.values[0, 0, 0].tolist() == [127, -1, 1]
    assert sent.scales is not None
    assert sent.scales[0, 0, 0] == pytest.approx(0.01)
    assert not sent.restored()[0, 1].any()


@given(CHANGES)
def test_the_error_of_int8_is_at_most_half_a_step(change: np.ndarray) -> None:
    sent = QuantizedUpdate.of(change, "int8")
    assert sent.scales is not None
    assert (np.abs(change - sent.restored()) <= 0.501 * sent.scales[..., None] + 1e-30).all()


LEVELS = arrays.arrays(
    np.int8, st.tuples(st.integers(1, 4), st.just(2), st.just(2), st.integers(1, 9)), elements=st.integers(-7, 7)
)


@given(LEVELS)
def test_four_bits_come_out_as_they_were_packed_in_half_the_bytes(levels: np.ndarray) -> None:
    packed = pack_four_bits(levels)
    assert 2 * packed.nbytes == levels.size
    assert np.array_equal(unpack_four_bits(packed), levels)


def test_a_byte_holds_lambda_in_its_lower_and_beta_in_its_upper_four_bits() -> None:
    levels = np.zeros((1, 2, 2, 3), np.int8)
    levels[0, 0] = [[-7, 1, 0], [7, -1, 0]]
    assert [f"{byte:02x}" for byte in pack_four_bits(levels)[0, 0]] == ["f1", "79", "88"]


@given(arrays.arrays(np.float32, (2, 2, 2, 3), elements=st.floats(-4e5, 4e5, width=32)))
def test_the_error_of_int4_is_at_most_half_a_level(change: np.ndarray) -> None:
    sent = QuantizedUpdate.of(change, "int4")
    assert sent.scales is not None
    least = 6e-8  # of a float16 scale
    assert (np.abs(change - sent.restored()) <= 0.501 * np.maximum(sent.scales[..., None].astype(np.float64), 7 * least)).all()
    assert (sent.scales <= np.abs(change).max(axis=-1) / 7 * 1.001 + 6e-8).all()  # the nearest float16 above


def test_a_change_beyond_float16_is_clipped_and_the_rest_carried_over() -> None:
    sent, lost = with_feedback(np.full((1, 2, 2, 1), 70_000, np.float32), None, "float16")
    assert (sent.restored() == 65_504).all()
    assert (lost == 70_000 - 65_504).all()


@pytest.mark.parametrize("dtype", COMPACT)
def test_over_the_rounds_the_sum_of_all_changes_arrives(dtype: UpdateDType) -> None:
    random = np.random.default_rng(0)
    changes = random.normal(scale=0.05, size=(30, 2, 2, 2, 4)).astype(np.float32)
    arrived, lost = np.zeros(changes.shape[1:], np.float64), None
    for change in changes:
        sent, lost = with_feedback(change, lost, dtype)
        arrived += sent.restored()
    assert lost is not None
    np.testing.assert_allclose(arrived + lost, changes.sum(axis=0), atol=1e-5)
    without = sum(QuantizedUpdate.of(change, dtype).restored().astype(np.float64) for change in changes)
    assert np.abs(arrived - changes.sum(axis=0)).mean() < np.abs(without - changes.sum(axis=0)).mean()


def test_an_error_of_another_layout_is_dropped() -> None:
    change = np.full((1, 2, 2, 2), 0.5, np.float32)
    sent, _ = with_feedback(change, np.ones((1, 2, 2, 4), np.float32), "float16")
    assert (sent.restored() == 0.5).all()


@pytest.mark.parametrize(("labels", "most"), [(2, 2000), (4, 2000)])
def test_an_update_in_int4_with_the_default_of_64_groups_and_its_evaluation_has_two_kilobytes_at_the_most(
    labels: int, most: int
) -> None:
    change = QuantizedUpdate.of(np.random.default_rng(0).normal(size=(9, 2, 2, 64)).astype(np.float32), "int4")
    shares = np.full(labels, 1 / labels, np.float32)
    counts = np.full((labels, labels), 50)
    texts, correct = 5 * labels**2, 5 * labels
    parts = (ConfidenceBin(texts, correct, texts * (place + 0.3) / 10) for place in range(10))
    own = {"label_probabilities": shares, "log_likelihood": -123.456789, "confidence": ConfidenceBins(tuple(parts))}
    whole = UpdateBody(change, counts, META, **own).to_bytes()
    assert len(whole) <= most
    back = UpdateBody.from_bytes(whole).update
    assert isinstance(back, QuantizedUpdate)
    assert back.dtype == "int4"
    assert np.array_equal(back.restored(), change.restored())


@pytest.mark.parametrize(("labels", "most"), [(2, 1000), (4, 2300)])
def test_an_answer_for_640_channels_of_a_task_in_int4_travels_in_int8_a_kilobyte_for_two_labels(labels: int, most: int) -> None:
    rows = np.random.default_rng(0).normal(size=(labels - 1, 640))
    answer = HeadBody.from_bytes(body := HeadBody(META, QuantizedRows.of(rows, rows_dtype("int4"))).to_bytes()).answer
    assert len(body) <= most
    assert answer is not None
    assert answer.dtype == "int8"


@pytest.mark.parametrize(("dtype", "most"), [("float16", 1800), ("int8", 1400), ("int4", 1100)])
def test_a_compact_body_of_nine_layers_and_four_labels_is_at_most_1800_bytes(dtype: UpdateDType, most: int) -> None:
    change = QuantizedUpdate.of(np.random.default_rng(0).normal(size=(9, 2, 2, 16)).astype(np.float32), dtype)
    body = UpdateBody(change, np.ones((4, 4), np.int64), META, label_probabilities=np.full(4, 0.25, np.float32)).to_bytes()
    assert len(body) <= most
    back = UpdateBody.from_bytes(body)
    assert isinstance(back.update, QuantizedUpdate)
    assert np.array_equal(back.update.restored(), change.restored())


def test_a_body_with_two_updates_is_refused_with_their_names() -> None:
    values = np.ones((1, 2, 2, 3), np.float32)
    with pytest.raises(LayoutMismatch, match="one update, this one coefficients and gradient"):
        read_update(TensorBody({"coefficients": values, "gradient": values}, {}))


FOUR_BITS = {"change": np.full((1, 2, 3), 0x88, np.uint8), "scales": np.ones((1, 2, 2), np.float16)}


def tensors(**changed: np.ndarray | None) -> TensorBody:
    fields = {"change": np.ones((1, 2, 2, 3), np.int8), "scales": np.ones((1, 2, 2), np.float32)} | changed
    return TensorBody({name: values for name, values in fields.items() if values is not None}, {})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (tensors(change=None), "no tensor 'change'"),
        (tensors(change=np.ones((1, 2, 2, 3), np.int16)), "int16, this takes float16 or int8"),
        (tensors(scales=None), "int8 or int4 comes with scales"),
        (tensors(**FOUR_BITS | {"scales": None}), "no tensor 'scales'"),
        (tensors(**FOUR_BITS | {"scales": np.ones((1, 2, 2), np.float32)}), "float32, this takes float16"),
        (tensors(**FOUR_BITS | {"scales": np.ones((1, 2, 3), np.float16)}), "has scales of shape"),
        (tensors(**FOUR_BITS | {"change": np.full((1, 2, 2, 3), 0x88, np.uint8)}), r"\(layers, 2, groups\)"),
        (
            tensors(**FOUR_BITS | {"change": np.full((1, 3, 3), 0x88, np.uint8), "scales": np.ones((1, 3, 2), np.float16)}),
            "layers, 2, 2",
        ),
        (tensors(change=np.ones((1, 2, 2, 3), np.float16)), "float16 without"),
        (tensors(scales=np.ones((1, 2, 2, 3), np.float32)), "has scales of shape"),
        (tensors(scales=np.ones((1, 2, 2), np.float64)), "float64"),
        (tensors(change=np.ones((4, 3), np.int8), scales=np.full(4, 0.25, np.float32)), "4 dimensions|has scales|dimensions"),
        (tensors(change=np.ones((1, 3, 2, 3), np.int8), scales=np.ones((1, 3, 2), np.float32)), r"\(layers, 2, 2, groups\)"),
    ],
)
def test_a_malformed_change_is_refused_with_the_reason(body: TensorBody, words: str) -> None:
    with pytest.raises(LayoutMismatch, match=words):
        QuantizedUpdate.read(body)


@pytest.mark.parametrize("scale", [np.nan, np.inf, 3e38])
def test_scales_with_infinite_results_are_refused(scale: float) -> None:
    with pytest.raises(NonFinite):
        QuantizedUpdate.read(tensors(change=np.full((1, 2, 2, 3), 127, np.int8), scales=np.full((1, 2, 2), scale, np.float32)))
    with pytest.raises(NonFinite):
        QuantizedUpdate.read(tensors(change=np.full((1, 2, 2, 3), np.inf, np.float16), scales=None))


@pytest.mark.parametrize("byte", [0x08, 0x80, 0x00])
def test_four_bits_that_are_no_level_are_refused(byte: int) -> None:
    packed = np.full((1, 2, 3), 0x88, np.uint8)
    packed[0, 1, 2] = byte
    with pytest.raises(Malformed, match="four bits that are 0"):
        QuantizedUpdate.read(tensors(**FOUR_BITS | {"change": packed}))


def test_a_change_in_int4_of_another_number_of_groups_is_told_by_its_shape() -> None:
    change = QuantizedUpdate.of(np.ones((1, 2, 2, 5), np.float32), "int4")
    assert QuantizedUpdate.read(TensorBody(change.tensors(), {})).values.shape == (1, 2, 2, 5)


def test_a_body_without_an_update_has_none() -> None:
    body = UpdateBody(None, np.ones((2, 2), np.int64), META).to_bytes()
    assert UpdateBody.from_bytes(body).update is None
