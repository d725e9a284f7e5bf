"""Quantised updates: a change of the coefficients in float16, int8 or int4, with error feedback (arXiv 1901.09847)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from ifed.errors import LayoutMismatch, Malformed, NonFinite
from ifed.tensors.values import ACTIVATION, CONTEXT, Coefficients, Float32, Float64, TensorBody

UpdateDType = Literal["float32", "float16", "int8", "int4"]
RowsDType = Literal["float32", "float16", "int8"]
LEVELS = 127  # int8 from -127 to 127, so that a change and its opposite are coded alike
LEVELS_OF_FOUR_BITS = 7  # likewise from -7 to 7
ZERO_OF_FOUR_BITS = 8  # what stands for 0 on the wire, so that 0 there is no level
Scales = Float32 | npt.NDArray[np.float16]
LARGEST_HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedUpdate:
    """The change of the coefficients by a client's local steps, quantised for the upload.

    Attributes:
        values: float16 or, for int8 and int4, int8, shape (layer, site, coefficient, G).
        scales: of integers, (layer, site, coefficient), float32 for int8 and float16 for int4: a change is its value times its scale. None
            for float16.
        four_bits: whether the values are levels from -7 to 7, of which two travel in a byte: int4.

    Raises:
        LayoutMismatch: not four axes, the middle two are not (2, 2), or scales are missing, superfluous or of another shape.
        NonFinite: NaN or Inf among values or scales, or in their product.
    """

    values: npt.NDArray[Any]
    scales: Scales | None = None
    four_bits: bool = False

    def __post_init__(self) -> None:
        if (self.values.dtype == np.int8) is not (self.scales is not None):
            raise LayoutMismatch("a change in int8 or int4 comes with scales, one in float16 without")
        if self.scales is not None and self.scales.shape != self.values.shape[:3]:
            raise LayoutMismatch(f"a change of shape {self.values.shape} has scales of shape {self.values.shape[:3]}")
        if self.scales is not None and not np.isfinite(self.scales).all():
            raise NonFinite("scales that are NaN or infinite say nothing of a change; send finite numbers")
        Coefficients(self.restored())

    @classmethod
    def of(cls, change: Float32, dtype: UpdateDType) -> Self:
        """Round a float32 change to the nearest representable values; values too large for float16 are clipped."""
        if dtype == "float16":
            return cls(np.clip(change, -LARGEST_HALF, LARGEST_HALF).astype(np.float16))
        return cls(*_to_int4(change), four_bits=True) if dtype == "int4" else cls(*_to_int8(change))

    @classmethod
    def read(cls, body: TensorBody) -> Self:
        """Read the tensors `change` and, for int8 and int4, `scales` of a body.

        Raises:
            LayoutMismatch: a tensor is missing or has another dtype; see also the class.
            Malformed: four bits that stand for no level.
        """
        change = body.tensor("change", np.float16, np.int8, np.uint8)
        if change.dtype == np.uint8:
            return cls(unpack_four_bits(change), body.tensor("scales", np.float16), four_bits=True)
        return cls(change, body.tensor("scales", np.float32) if "scales" in body.tensors else None)

    @property
    def dtype(self) -> str:
        """`float16`, `int8` or `int4`."""
        return "int4" if self.four_bits else str(self.values.dtype)

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """Return the tensors that a body carries, by name."""
        change = pack_four_bits(self.values) if self.four_bits else self.values
        return {"change": change} | ({} if self.scales is None else {"scales": self.scales})

    def restored(self) -> Float32:
        """Return the dequantised change, float32."""
        with np.errstate(over="ignore"):
            return self.values.astype(np.float32) * (1 if self.scales is None else self.scales.astype(np.float32)[..., None])


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedRows:
    """Rows of numbers for an upload: as they are, or each in eight bits with a scale of its own.

    Attributes:
        values: float32, float64, float16 or int8, (m, d).
        scales: of int8 values, float32, (m,). None for the others.

    Raises:
        LayoutMismatch: not two axes, or scales are missing, superfluous or of another shape.
        NonFinite: NaN or Inf among values or scales.
    """

    values: npt.NDArray[Any]
    scales: Float32 | None = None

    def __post_init__(self) -> None:
        expected = self.values.shape[:1] if self.values.dtype == np.int8 else None
        if self.values.ndim != 2 or (None if self.scales is None else self.scales.shape) != expected:
            raise LayoutMismatch("rows have two axes; those in int8 come with a scale each, others without")
        if not np.isfinite(self.restored()).all():
            raise NonFinite("rows hold values that are NaN or infinite; send finite numbers")

    @classmethod
    def of(cls, rows: npt.NDArray[np.floating], dtype: RowsDType) -> Self:
        """Round rows to the nearest representable values; values too large for float16 are clipped."""
        if dtype == "int8":
            return cls(*_to_int8(rows.astype(np.float32)))
        if dtype == "float16":
            return cls(np.clip(rows, -LARGEST_HALF, LARGEST_HALF).astype(np.float16))
        return cls(rows.astype(np.float32))

    @classmethod
    def read(cls, body: TensorBody, name: str) -> Self:
        """Read the tensor `name` of a body and, for int8, `scales`."""
        scales = body.tensor("scales", np.float32) if "scales" in body.tensors else None
        return cls(body.tensor(name, np.float16, np.float32, np.int8), scales)

    @property
    def dtype(self) -> str:
        """`float32`, `float16` or `int8`."""
        return str(self.values.dtype)

    def tensors(self, name: str) -> dict[str, npt.NDArray[Any]]:
        """Return the tensors that a body carries, by name."""
        return {name: self.values} | ({} if self.scales is None else {"scales": self.scales})

    def restored(self) -> Float64:
        """Return the numbers, float64."""
        with np.errstate(over="ignore"):
            return self.values.astype(np.float64) * (1 if self.scales is None else self.scales.astype(np.float64)[:, None])


def rows_dtype(dtype: UpdateDType) -> RowsDType:
    """Return how the answers to head rounds travel in a task with this `update_dtype`: as updates do, but those of int4 in int8.

    An answer has no error feedback that would make up for the coarse levels of int4 (see decision 9).
    """
    return "int8" if dtype == "int4" else dtype


def pack_four_bits(levels: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Return levels from -7 to 7, (layer, site, 2, G), as bytes, (layer, site, G).

    A byte holds λ of its layer, site and group in its lower four bits and β in its upper ones, each as the level plus 8.
    """
    shifted = (levels + ZERO_OF_FOUR_BITS).astype(np.uint8)
    return np.asarray(shifted[:, :, CONTEXT] | shifted[:, :, ACTIVATION] << 4, dtype=np.uint8)


def unpack_four_bits(packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.int8]:
    """Return the levels, int8, (layer, site, 2, G), of bytes from `pack_four_bits`, (layer, site, G).

    Raises:
        LayoutMismatch: not three axes.
        Malformed: four bits that are 0 stand for no level.
    """
    if packed.ndim != 3:
        raise LayoutMismatch(f"a change in int4 has shape (layers, 2, groups), a byte for λ and β together, got {packed.shape}")
    halves = np.stack([packed & 15, packed >> 4], axis=2)
    if not halves.all():
        raise Malformed("a change in int4 holds four bits that are 0; levels from -7 to 7 travel as 1 to 15")
    return (halves.astype(np.int8) - ZERO_OF_FOUR_BITS).astype(np.int8)


def _to_int8(values: Float32) -> tuple[npt.NDArray[np.int8], Float32]:
    """Return the values in eight bits and the scale of each row along the last axis."""
    scales = (np.abs(values).max(axis=-1) / LEVELS).astype(np.float32)
    return _levels(values, scales, LEVELS), scales


def _to_int4(values: Float32) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float16]]:
    """Return the values as levels from -7 to 7 and the scale of each row along the last axis, rounded up to float16."""
    exact = np.minimum(np.abs(values).max(axis=-1) / LEVELS_OF_FOUR_BITS, LARGEST_HALF).astype(np.float32)
    nearest = exact.astype(np.float16)
    scales = np.where(nearest < exact, np.nextafter(nearest, np.float16(np.inf)), nearest)
    return _levels(values, scales.astype(np.float32), LEVELS_OF_FOUR_BITS), scales


def _levels(values: Float32, scales: Float32, most: int) -> npt.NDArray[np.int8]:
    """Return each value in steps of the scale of its row, from -most to most."""
    steps = np.divide(values, scales[..., None], out=np.zeros_like(values), where=scales[..., None] > 0)
    return np.clip(np.rint(steps), -most, most).astype(np.int8)


def with_feedback(change: Float32, lost: Float32 | None, dtype: UpdateDType) -> tuple[QuantizedUpdate, Float32]:
    """Quantise a change plus the error of earlier uploads (error feedback, arXiv 1901.09847, algorithm 2).

    Args:
        lost: the quantisation error carried over from earlier contributions; None or another shape counts as zero.

    Returns:
        the quantised update, and its error, to carry over to the next one once the aggregator has received this.
    """
    whole = change if lost is None or lost.shape != change.shape else change + lost
    sent = QuantizedUpdate.of(whole, dtype)
    return sent, whole - sent.restored()
