"""The HTTP bodies that carry tensors: contributions and adapters, each one safetensors file."""

from __future__ import annotations

from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from ifed.errors import LayoutMismatch, Malformed, NonFinite
from ifed.messages.rounds import AdapterMeta, ContributionMeta
from ifed.messages.tasks import Message
from ifed.messages.validation import describe_errors
from ifed.tensors.updates import UPDATE_TENSORS, Update, read_update, update_tensors
from ifed.tensors.values import Coefficients, ContextVector, Float32, Int64, TensorBody

TENSORS = "application/vnd.safetensors"
SUM_TOLERANCE = 1e-3
LARGEST_ADAPTER_HEADER = 4 * 2**20  # bytes; a task may have a thousand long labels
Meta = TypeVar("Meta", bound=Message)


class ContextBody:
    """The body of `PUT …/context`: tensor `context`, float16 or float32, shape (layer, site, d)."""

    def __init__(self, vector: ContextVector, meta: ContributionMeta) -> None:
        self.vector, self.meta = vector, meta

    def to_bytes(self) -> bytes:
        return TensorBody({"context": self.vector.wire()}, self.meta.model_dump(exclude_none=True)).to_bytes()

    @classmethod
    def from_bytes(cls, body: bytes) -> Self:
        parsed = _only(TensorBody.from_bytes(body), "context")
        return cls(read_context(parsed), _meta(ContributionMeta, parsed))


class UpdateBody:
    """The body of `PUT …/update`: the confusion counts of the round's version, and in a calibration round the update.

    Tensors: `confusion`, int64, (truth, prediction); the update as `coefficients` or `gradient`, float32, (layer, site, coefficient,
    group), or as `change` in float16 or int8, the latter with `scales`; and where the policy asks for them `label_probabilities`, float32,
    (labels,): the mean probability of each label on the held-out texts under the round's version.
    """

    def __init__(
        self, update: Update | None, confusion: Int64, meta: ContributionMeta, *, label_probabilities: Float32 | None = None
    ) -> None:
        self.update, self.confusion, self.meta, self.label_probabilities = update, confusion, meta, label_probabilities

    def to_bytes(self) -> bytes:
        tensors: dict[str, npt.NDArray[Any]] = {"confusion": self.confusion} | update_tensors(self.update)
        if self.label_probabilities is not None:
            tensors["label_probabilities"] = self.label_probabilities
        return TensorBody(tensors, self.meta.model_dump(exclude_none=True)).to_bytes()

    @classmethod
    def from_bytes(cls, body: bytes) -> Self:
        parsed = _only(TensorBody.from_bytes(body), "confusion", "label_probabilities", *UPDATE_TENSORS)
        confusion = parsed.tensor("confusion", np.int64)
        if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1] or (confusion < 0).any():
            raise LayoutMismatch(f"confusion counts are a square table of numbers from 0, got shape {confusion.shape}")
        return cls(
            read_update(parsed),
            confusion,
            _meta(ContributionMeta, parsed),
            label_probabilities=read_label_probabilities(parsed) if "label_probabilities" in parsed.tensors else None,
        )


class AdapterBody:
    """The body of `GET …/adapter`: `context` and `coefficients`, all that a model needs to serve one task."""

    def __init__(self, context: ContextVector, coefficients: Coefficients, meta: AdapterMeta) -> None:
        self.context, self.coefficients, self.meta = context, coefficients, meta

    def to_bytes(self) -> bytes:
        tensors = {"context": self.context.wire(), "coefficients": self.coefficients.values}
        return TensorBody(tensors, self.meta.model_dump(mode="json", exclude_none=True)).to_bytes()

    @classmethod
    def from_bytes(cls, body: bytes) -> Self:
        parsed = TensorBody.from_bytes(body, largest_header=LARGEST_ADAPTER_HEADER)
        return cls(read_context(parsed), read_coefficients(parsed), _meta(AdapterMeta, parsed))


def read_context(body: TensorBody) -> ContextVector:
    """Read the tensor `context` of a body, float16 or float32, shape (layer, site, d).

    Raises:
        LayoutMismatch: it is not there, or of another dtype or number of axes.
        NonFinite: it holds NaN or Inf.
    """
    return ContextVector(body.tensor("context", np.float16, np.float32))


def read_coefficients(body: TensorBody) -> Coefficients:
    """Read the tensor `coefficients` of a body, float32, shape (layer, site, coefficient, group).

    Raises:
        LayoutMismatch: it is not there, or of another dtype or number of axes.
        NonFinite: it holds NaN or Inf.
    """
    return Coefficients(body.tensor("coefficients", np.float32))


def _only(body: TensorBody, *names: str) -> TensorBody:
    if unknown := sorted(set(body.tensors) - set(names)):
        raise LayoutMismatch(f"the body holds tensors that have no place here: {unknown[:5]}; it takes {' and '.join(names)}")
    return body


def read_label_probabilities(body: TensorBody) -> Float32:
    """Read the tensor `label_probabilities` of a body, float32, shape (labels,): non-negative numbers whose sum is 1.

    Raises:
        LayoutMismatch: it is not there, or of another dtype or number of axes.
        NonFinite: it holds NaN or Inf.
        Malformed: a number below 0, or a sum that is not 1.
    """
    means = body.tensor("label_probabilities", np.float32)
    if means.ndim != 1:
        raise LayoutMismatch(f"label probabilities have one axis, the labels, got shape {means.shape}")
    if not np.isfinite(means).all():
        raise NonFinite("label probabilities that are NaN or infinite say nothing of a prior; send finite numbers")
    if (means < 0).any() or abs(float(means.sum(dtype=np.float64)) - 1) > SUM_TOLERANCE:
        raise Malformed("label probabilities are the mean over the held-out texts: numbers from 0 whose sum is 1")
    return means


def _meta(kind: type[Meta], parsed: TensorBody) -> Meta:
    try:
        return kind.model_validate(dict(parsed.metadata))
    except ValidationError as reason:
        raise Malformed(f"the body's metadata is not what a {kind.__name__} holds: {describe_errors(reason.errors())}") from reason
