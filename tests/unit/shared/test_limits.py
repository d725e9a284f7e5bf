"""A contribution has no bytes that nothing reads and no number that overflows."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ifed.errors import Malformed
from ifed.tensors.limits import check_contribution_body
from ifed.tensors.values import TensorBody
from testing.factories import context_body, update_body


def rewritten(body: bytes, *, indent: int = 0, end: bytes = b"", **entries: str) -> bytes:
    """Return a safetensors body of the same tensors with further metadata, indentation or padding in its header."""
    length = int.from_bytes(body[:8], "little")
    header = json.loads(body[8 : 8 + length])
    header["__metadata__"] |= entries
    written = json.dumps(header, indent=indent or None).encode() + end
    return len(written).to_bytes(8, "little") + written + body[8 + length :]


@pytest.mark.parametrize("body", [context_body(), update_body(), update_body(None), rewritten(context_body(), indent=4)])
def test_what_clients_send_passes_whatever_library_wrote_it(body: bytes) -> None:
    check_contribution_body(body)


@pytest.mark.parametrize(
    "body",
    [
        rewritten(context_body(), end=b" " * 2000),
        rewritten(context_body(), other="x"),
        rewritten(context_body(), ifed=json.dumps({"examples": 10}) + " " * 2000),
        rewritten(context_body(), ifed='{"examples":1.' + "0" * 2000 + "}"),
        TensorBody({"context": np.full((1, 2, 4), 1e10, np.float32)}, {}).to_bytes(),
        TensorBody({"confusion": np.full((2, 2), 2**62)}, {}).to_bytes(),
    ],
    ids=["padding", "another entry", "padding in the entry", "digits", "large numbers", "large counts"],
)
def test_padding_other_metadata_and_huge_numbers_are_refused(body: bytes) -> None:
    with pytest.raises(Malformed):
        check_contribution_body(body)
