"""Sketches: short projections of context vectors, by which tasks are compared."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from ifed.messages.tasks import InjectionPosition
from ifed.tensors.values import Float64

SIZE = 64
BLOCK = 4096


def sketch(values: npt.NDArray[np.floating]) -> Float64:
    """Return a fixed random projection of a context vector (layer, site, d) to `SIZE` numbers, of unit length.

    The dot product of two sketches estimates the cosine of the angle between the vectors (Johnson and Lindenstrauss; random signs as
    in Achlioptas 2003). Each layer and site is first scaled to unit length, because upper layers add far more to the residual stream.
    The same vector gives the same sketch on every machine.
    """
    rows = values.astype(np.float64).reshape(-1, values.shape[-1])
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    flat = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0).ravel()
    projection: Float64 = np.zeros(SIZE, dtype=np.float64)
    for start in range(0, flat.size, BLOCK):
        block = flat[start : start + BLOCK]
        projection = np.asarray(projection + _signs(start, block.size) @ block, dtype=np.float64)
    length = float(np.linalg.norm(projection))
    return np.asarray(projection / length, dtype=np.float64) if length > 0 else projection


def comparison_key(fingerprint: str, layers: list[int], groups: int, injection: InjectionPosition = "all_tokens") -> str:
    """Return a digest of what two tasks must share to be compared: model, injected layers and tokens, and groups of coefficients."""
    tokens = "" if injection == "all_tokens" else f"/{injection}"  # keys from before tasks had a choice stay as they are
    return hashlib.sha256(f"{fingerprint}/{layers}/{groups}{tokens}".encode()).hexdigest()


def _signs(start: int, width: int) -> Float64:
    """Return columns of the projection, (SIZE, width): plus or minus 1, drawn by SHAKE-256."""
    count = SIZE * width
    # Stored sketches were made with this seed; another one would make them incomparable.
    drawn = hashlib.shake_256(f"ifed sketch 1/{start}".encode()).digest((count + 7) // 8)
    bits = np.unpackbits(np.frombuffer(drawn, dtype=np.uint8))[:count]
    return np.asarray(bits.reshape(SIZE, width) * 2.0 - 1.0, dtype=np.float64)
