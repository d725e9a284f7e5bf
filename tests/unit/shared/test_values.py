"""Tensor values are validated and frozen, and their bodies are deterministic."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ifed.errors import DigestMismatch, LayoutMismatch, Malformed, NonFinite
from ifed.tensors.values import ACTIVATION, CONTEXT, Coefficients, ContextVector, TensorBody, check_content_digest, content_digest


def test_a_context_vector_has_layers_sites_and_channels() -> None:
    with pytest.raises(LayoutMismatch, match=r"\(3, 4\)"):
        ContextVector(np.zeros((3, 4)))
    with pytest.raises(LayoutMismatch, match=r"\(2, 3, 4\)"):
        ContextVector(np.zeros((2, 3, 4)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused(bad: float) -> None:
    values = np.zeros((1, 2, 2, 4), np.float32)
    values[0, 1, 0, 3] = bad
    with pytest.raises(NonFinite, match="1 values"):
        Coefficients(values)


def test_values_are_frozen_copies() -> None:
    original = np.zeros((1, 2, 4), np.float32)
    vector = ContextVector(original)
    original[:] = 1
    assert not vector.values.any()
    with pytest.raises(ValueError, match="read-only"):
        vector.values[0, 0, 0] = 1


def test_the_identity_has_activation_weight_one_and_the_given_context_weight() -> None:
    values = Coefficients.identity(3, 4, context_weight=0.1).values
    assert values.shape == (3, 2, 2, 4)
    assert (values[:, :, ACTIVATION] == 1).all()
    assert (values[:, :, CONTEXT] == np.float32(0.1)).all()


def test_a_context_vector_is_sent_in_float16() -> None:
    assert ContextVector(np.full((1, 2, 4), 1.5)).wire().dtype == np.float16


def test_a_value_beyond_float16_is_sent_in_float32() -> None:
    assert ContextVector(np.full((1, 2, 4), 70_000.0)).wire().dtype == np.float32


@given(arrays.arrays(np.float32, (2, 2, 2, 3), elements=st.floats(-1e6, 1e6, width=32)), st.integers(0, 9))
def test_a_body_is_read_as_it_was_written_and_its_bytes_are_deterministic(values: np.ndarray, number: int) -> None:
    first = TensorBody({"b": values, "a": np.arange(3)}, {"x": number, "name": "café"}).to_bytes()
    second = TensorBody({"a": np.arange(3), "b": values.copy()}, {"name": "café", "x": number}).to_bytes()
    assert first == second
    back = TensorBody.from_bytes(first)
    assert np.array_equal(back.tensors["b"], values)
    assert back.metadata == {"x": number, "name": "café"}


@pytest.mark.parametrize("body", [b"", b"{}", b"\xff" * 64, b"\x08\0\0\0\0\0\0\0{}{}{}{}"])
def test_bytes_that_are_no_safetensors_file_are_refused(body: bytes) -> None:
    with pytest.raises(Malformed):
        TensorBody.from_bytes(body)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_as_malformed(body: bytes) -> None:
    with suppress(Malformed):
        TensorBody.from_bytes(body)


def test_a_tensor_of_another_dtype_is_refused() -> None:
    body = TensorBody({"a": np.zeros(3, np.float64)}, {})
    with pytest.raises(LayoutMismatch, match="float64"):
        body.tensor("a", np.float32)
    with pytest.raises(LayoutMismatch, match="no tensor 'b'"):
        body.tensor("b", np.float32)


def test_a_changed_body_is_refused_by_its_digest() -> None:
    header = content_digest(b"body")
    check_content_digest(b"body", header)
    check_content_digest(b"body", None)
    check_content_digest(b"body", f"sha-512=:AAAA:, {header}")
    with pytest.raises(DigestMismatch):
        check_content_digest(b"Body", header)
