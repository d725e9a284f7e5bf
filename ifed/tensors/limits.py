"""Limits on the body of a contribution: it has no more bytes than its content needs, and no number that overflows a sum."""

from __future__ import annotations

import json

import numpy as np

from ifed.errors import Malformed
from ifed.tensors.values import METADATA_KEY, TensorBody

PADDING = 1024  # bytes by which a header may be longer than we would write it: other libraries indent and align
LARGEST_NUMBER = 1e9  # activations and coefficients are far below it, and sums over many clients far below what overflows


def check_contribution_body(body: bytes) -> None:
    """Check a body that `TensorBody.from_bytes` can read; a layout is checked elsewhere.

    Raises:
        Malformed: the header has padding or metadata that nothing reads, or a number is out of bounds.
    """
    length = int.from_bytes(body[:8], "little")
    header = json.loads(body[8 : 8 + length])
    metadata = header.get("__metadata__", {})
    if set(metadata) != {METADATA_KEY}:
        raise Malformed(f"the metadata of the body has the one entry {METADATA_KEY!r}")
    entry = metadata[METADATA_KEY]
    if length > _size(header) + PADDING or len(entry.encode()) > _size(json.loads(entry)) + PADDING:
        raise Malformed("the header of the body is longer than its content; send it without padding")
    for name, values in TensorBody.from_bytes(body).tensors.items():
        if values.size and not np.abs(values.astype(np.float64)).max() <= LARGEST_NUMBER:  # also for NaN
            raise Malformed(f"the tensor {name!r} holds a number that is larger than {LARGEST_NUMBER:.0e}")


def _size(content: object) -> int:
    return len(json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace"))
