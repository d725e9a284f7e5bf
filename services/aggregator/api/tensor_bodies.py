"""Tensor bodies over HTTP: request bodies with a checked digest, and responses with ETag and Content-Digest."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Header, Request, Response

from ifed.messages.bodies import TENSORS
from ifed.tensors.values import check_content_digest, content_digest
from services.aggregator.application.adapters import TensorResponse

BINARY = {"schema": {"type": "string", "format": "binary"}}
TENSOR_REQUEST: dict[str, Any] = {"requestBody": {"required": True, "content": {TENSORS: BINARY}}}
TENSOR_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {TENSORS: BINARY}, "description": "a safetensors file; ETag is its sha256"},
    304: {"description": "unchanged: If-None-Match gives its sha256"},
}


async def read_body(request: Request, content_digest: Annotated[str | None, Header()] = None) -> bytes:
    """Return the body.

    Raises:
        DigestMismatch: it does not match its Content-Digest header.
    """
    body = await request.body()
    check_content_digest(body, content_digest)
    return body


async def read_known(if_none_match: Annotated[str | None, Header()] = None) -> frozenset[str]:
    """Return the digests that the caller has, from If-None-Match."""
    tags = (if_none_match or "").split(",")
    return frozenset(tag.strip().removeprefix("W/").strip('"') for tag in tags) - {""}


def tensor_response(tensors: TensorResponse, known: frozenset[str]) -> Response:
    """Return the body, or 304 when the caller has it."""
    headers = {"ETag": f'"{tensors.digest}"', "Cache-Control": "no-cache"}
    if tensors.digest in known:
        return Response(status_code=304, headers=headers)
    return Response(tensors.body, headers=headers | {"Content-Digest": content_digest(tensors.body)}, media_type=TENSORS)


BodyDep = Annotated[bytes, Depends(read_body)]
KnownDep = Annotated[frozenset[str], Depends(read_known)]
