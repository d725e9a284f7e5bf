"""Context vectors made short, so that tasks can be compared by them. Pure: the same vector gives the same sketch everywhere."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
SIZE = 64
BLOCK = 4096


def sketch(values: npt.NDArray[np.floating]) -> Float64:
    """A fixed random projection of a context vector (layer, site, d) to `SIZE` numbers, of length 1.

    The dot product of two sketches estimates the cosine of the angle between the vectors (Johnson and Lindenstrauss; random signs as
    in Achlioptas 2003). Each layer and site counts alike: it is brought to length 1 first, since upper layers add far more to the stream.
    """
    rows = values.astype(np.float64).reshape(-1, values.shape[-1])
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    flat = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0).ravel()
    blocks = range(0, flat.size, BLOCK)
    found: Float64 = np.zeros(SIZE, dtype=np.float64)
    for start in blocks:
        block = flat[start : start + BLOCK]
        found = np.asarray(found + _signs(start, block.size) @ block, dtype=np.float64)
    length = float(np.linalg.norm(found))
    return np.asarray(found / length, dtype=np.float64) if length > 0 else found


def comparison_key(fingerprint: str, layers: list[int], groups: int) -> str:
    """What two tasks must share to be compared: the model, the injected layers and the groups of the coefficients."""
    return hashlib.sha256(f"{fingerprint}/{layers}/{groups}".encode()).hexdigest()


def _signs(start: int, width: int) -> Float64:
    """Columns of the projection, (SIZE, width): plus or minus 1, drawn by SHAKE-256."""
    count = SIZE * width
    bits = hashlib.shake_256(f"ifed sketch 1/{start}".encode()).digest((count + 7) // 8)
    drawn = np.unpackbits(np.frombuffer(bits, dtype=np.uint8))[:count]
    return np.asarray(drawn.reshape(SIZE, width) * 2.0 - 1.0, dtype=np.float64)
