"""Context vectors, injection coefficients and gradients, and the safetensors bodies that carry them.

Axes, everywhere in this software:

    layer        the injected layers of the task, lowest first (a task that injects into the upper half carries only those)
    site         0 attention output, 1 MLP output            `SITES`
    coefficient  0 λ, weight of the context; 1 β, weight of the activation   `CONTEXT`, `ACTIVATION`
    channel      the hidden size d, cut into G contiguous groups of d / G channels
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic_core import from_json  # unlike json.loads it refuses lone surrogates and deep nesting with a ValueError
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from ifed.errors import DigestMismatch, LayoutMismatch, Malformed, NonFinite

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
SITES = ("attention", "mlp")
CONTEXT, ACTIVATION = 0, 1
METADATA_KEY = "ifed"
LARGEST_HEADER = 64 * 1024  # bytes of a safetensors header; one of 15 MB with 270,000 empty tensors takes seconds to parse


def _frozen(values: npt.ArrayLike, *, what: str, dimensions: int) -> Float32:
    """Return a read-only float32 copy; refuse values that are not finite or have another number of dimensions."""
    array = np.array(values, dtype=np.float32, order="C")
    if array.ndim != dimensions:
        raise LayoutMismatch(f"{what} has {array.ndim} dimensions, expected {dimensions}; its shape is {array.shape}")
    if not np.isfinite(array).all():
        raise NonFinite(f"{what} holds {int((~np.isfinite(array)).sum())} values that are NaN or infinite; send finite numbers")
    array.flags.writeable = False
    return array


def digest_of(body: bytes) -> str:
    """Return the sha256 of `body` in hexadecimal, which identifies a contribution or an aggregate."""
    return hashlib.sha256(body).hexdigest()


def content_digest(body: bytes) -> str:
    """Return the value of the `Content-Digest` header for `body` (RFC 9530, section 2)."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


def check_content_digest(body: bytes, header: str | None) -> None:
    """Check a body against its `Content-Digest` header; a header with another algorithm, or none, passes.

    Raises:
        DigestMismatch: the header names a sha-256 and the body has another.
    """
    if header and "sha-256=" in header and content_digest(body) not in header.replace(" ", ""):
        raise DigestMismatch(
            "the body's sha-256 is not the one its Content-Digest header gives; it was changed on the way, send it again"
        )


@dataclass(frozen=True, slots=True)
class ContextVector:
    """Mean attention and MLP outputs at the last token of the demonstrations: v_k or v_g of arXiv 2511.06757.

    Attributes:
        values: float32, shape (layer, site, d).

    Raises:
        LayoutMismatch: not three axes, or the second is not the two sites.
        NonFinite: NaN or Inf among the values.
    """

    values: Float32

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _frozen(self.values, what="a context vector", dimensions=3))
        if self.values.shape[1] != len(SITES) or 0 in self.values.shape:
            raise LayoutMismatch(f"a context vector has shape (layers, {len(SITES)}, hidden size), got {self.values.shape}")

    def wire(self) -> npt.NDArray[np.float16] | Float32:
        """Return the values for the wire: float16, or float32 if a value would overflow float16."""
        with np.errstate(over="ignore"):
            half = self.values.astype(np.float16)
        return half if np.isfinite(half).all() else self.values

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ContextVector) and np.array_equal(self.values, other.values)

    def __hash__(self) -> int:
        return hash(self.values.tobytes())


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Injection coefficients Λ: λ and β per layer, site and channel group (arXiv 2511.06757, with groups; G=1 is the paper).

    Attributes:
        values: float32, shape (layer, site, coefficient, G).

    Raises:
        LayoutMismatch: not four axes, or the middle two are not (2, 2).
        NonFinite: NaN or Inf among the values.
    """

    values: Float32

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _frozen(self.values, what="coefficients", dimensions=4))
        if self.values.shape[1:3] != (2, 2) or 0 in self.values.shape:
            raise LayoutMismatch(f"coefficients have shape (layers, 2, 2, groups), got {self.values.shape}")

    @classmethod
    def identity(cls, layers: int, groups: int, *, context_weight: float = 0.0) -> Self:
        """Return β = 1 and λ = `context_weight` everywhere; with 0 the injected model is the base model, bit for bit."""
        values = np.empty((layers, 2, 2, groups), dtype=np.float32)
        values[:, :, CONTEXT], values[:, :, ACTIVATION] = context_weight, 1.0
        return cls(values)

    @property
    def groups(self) -> int:
        return int(self.values.shape[3])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Coefficients) and np.array_equal(self.values, other.values)

    def __hash__(self) -> int:
        return hash(self.values.tobytes())


@dataclass(frozen=True, slots=True, eq=False)
class Gradient(Coefficients):
    """The mean gradient of the loss with respect to Λ: float32, of Λ's shape, finite."""


def check_layout(values: npt.NDArray[Any], expected: tuple[int, ...], *, what: str) -> None:
    """Check that `values` has the shape `expected`.

    Raises:
        LayoutMismatch: it has another shape; the message names both.
    """
    if values.shape != expected:
        raise LayoutMismatch(f"{what} has shape {values.shape}, this task takes {expected}")


@dataclass(frozen=True, slots=True)
class TensorBody:
    """An HTTP body with tensors: named arrays and a small JSON object in one safetensors file.

    The same content always gives the same bytes (keys sorted, one metadata entry), so the sha256 of the bytes identifies it.

    Attributes:
        tensors: arrays by name, of any dtype that safetensors supports.
        metadata: JSON values, stored in the file's `__metadata__` under `ifed`.
    """

    tensors: Mapping[str, npt.NDArray[Any]]
    metadata: Mapping[str, Any]

    def to_bytes(self) -> bytes:
        arrays = {name: np.ascontiguousarray(self.tensors[name]) for name in sorted(self.tensors)}
        return save_safetensors(arrays, {METADATA_KEY: json.dumps(self.metadata, sort_keys=True, separators=(",", ":"))})

    @classmethod
    def from_bytes(cls, body: bytes, *, largest_header: int = LARGEST_HEADER) -> Self:
        """Parse a body.

        Args:
            body: as it was received.
            largest_header: bytes of the header of the file; a longer one is refused before it is parsed.

        Raises:
            Malformed: not a safetensors file, with too long a header, or without the metadata entry.
        """
        if (length := int.from_bytes(body[:8], "little")) > largest_header:
            raise Malformed(f"the safetensors header has {length} bytes, at most {largest_header} are taken; was all of it sent?")
        try:
            tensors = load_safetensors(body)
            header = from_json(body[8 : 8 + length])
            metadata = from_json(header.get("__metadata__", {}).get(METADATA_KEY, "{}"))
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as reason:
            raise Malformed("the body is not a safetensors file that this service can read; was all of it sent?") from reason
        if not isinstance(metadata, dict):
            raise Malformed(f"the metadata entry {METADATA_KEY!r} is not a JSON object")
        return cls(tensors, metadata)

    def tensor(self, name: str, *dtypes: type[np.generic]) -> npt.NDArray[Any]:
        """Return the array `name`.

        Raises:
            LayoutMismatch: it is missing, or its dtype is none of `dtypes`.
        """
        if name not in self.tensors:
            raise LayoutMismatch(f"the body has no tensor {name!r}; it holds {sorted(self.tensors) or 'none'}")
        array = self.tensors[name]
        if array.dtype.type not in dtypes:
            raise LayoutMismatch(f"the tensor {name!r} is {array.dtype}, this takes {' or '.join(d.__name__ for d in dtypes)}")
        return array
