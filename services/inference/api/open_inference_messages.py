"""Messages of the Open Inference Protocol, version 2: parse requests and write answers, in JSON and with binary tensors."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from ifed.errors import Malformed
from ifed.messages.inference import ServedModel
from ifed.messages.validation import describe_errors
from services.inference.service import Answer

HEADER_LENGTH = "Inference-Header-Content-Length"
MAX_TIMEOUT = 10**15  # microseconds, thirty years
OUTPUTS = ("label", "probabilities", "error")


class TensorMetadata(BaseModel):
    """Name, datatype and shape of a tensor; a dimension of -1 has any size."""

    name: str = Field(examples=["text"])
    datatype: str = Field(examples=["BYTES"])
    shape: list[int] = Field(examples=[[-1]])


class ModelMetadata(BaseModel):
    """Answer of `GET /v2/models/{model}`."""

    name: str = Field(examples=["sentiment"])
    versions: list[str] = Field(examples=[["7"]])
    platform: str = "ifed"
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]

    @classmethod
    def of(cls, name: str, served: ServedModel) -> ModelMetadata:
        """Return the metadata of a task under the name it was requested by."""
        return cls(
            name=name,
            versions=[str(served.adapter_version)],
            inputs=[TensorMetadata(name="text", datatype="BYTES", shape=[-1])],
            outputs=[
                TensorMetadata(name="label", datatype="BYTES", shape=[-1]),
                TensorMetadata(name="probabilities", datatype="FP32", shape=[-1, len(served.labels)]),
                TensorMetadata(name="error", datatype="BYTES", shape=[-1]),
            ],
        )


class ServerMetadata(BaseModel):
    """Answer of `GET /v2`."""

    name: str = "ifed-inference"
    version: str = Field(examples=["0.1.0"])
    extensions: list[str] = ["binary_tensor_data"]


class InferInput(BaseModel):
    """The texts: one tensor of datatype BYTES and shape [n] or [n, 1]."""

    name: str = Field(examples=["text"])
    shape: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(min_length=1, max_length=8, examples=[[1]])
    datatype: str = Field(examples=["BYTES"])
    parameters: dict[str, Any] = {}
    data: list[Any] | None = Field(None, examples=[["I liked it."]])


class InferOutput(BaseModel):
    """A requested output."""

    name: str = Field(examples=["label"])
    parameters: dict[str, Any] = {}


class InferRequest(BaseModel):
    """Body of `POST …/infer`, or its JSON header when binary tensors follow."""

    id: str | None = None
    inputs: list[InferInput] = Field(min_length=1, max_length=1)
    outputs: list[InferOutput] = []
    parameters: dict[str, Any] = Field({}, description="`timeout` is a deadline in microseconds")


@dataclass(frozen=True, slots=True)
class Inference:
    """A parsed request: its texts, and the message that names the requested outputs."""

    texts: list[str]
    request: InferRequest

    @property
    def timeout(self) -> float | None:
        """The request's timeout in seconds; None if it has none or one that is not a positive number."""
        microseconds = self.request.parameters.get("timeout")
        if isinstance(microseconds, bool) or not isinstance(microseconds, int | float) or not microseconds > 0:
            return None
        return min(microseconds, MAX_TIMEOUT) / 1e6


def request_schema() -> dict[str, Any]:
    """Return the JSON schema of `InferRequest` without references, for a route whose body FastAPI does not parse."""
    schema = InferRequest.model_json_schema()
    definitions = schema.pop("$defs")

    def inlined(part: Any) -> Any:
        if isinstance(part, list):
            return [inlined(item) for item in part]
        if not isinstance(part, dict):
            return part
        name = part.get("$ref", "").rsplit("/", 1)[-1]
        return inlined(definitions[name]) if name else {key: inlined(value) for key, value in part.items()}

    inlined_schema: dict[str, Any] = inlined(schema)
    return inlined_schema


def parse_inference(body: bytes, header_length: int | None) -> Inference:
    """Parse the body of a request.

    Args:
        body: as it was received.
        header_length: bytes of the JSON header when binary tensors follow it; None for a body of JSON alone.

    Raises:
        Malformed: the body is not a request of the protocol, or its input is not one tensor of texts.
    """
    header = body if header_length is None else body[:header_length]
    try:
        request = InferRequest.model_validate_json(header)
    except ValidationError as reason:
        raise Malformed(f"the body is not a request of the Open Inference Protocol: {describe_errors(reason.errors())}") from reason
    (tensor,) = request.inputs
    if tensor.datatype != "BYTES":
        raise Malformed(f"the input {tensor.name!r} is {tensor.datatype}; texts are BYTES")
    if unknown := [output.name for output in request.outputs if output.name not in OUTPUTS]:
        raise Malformed(f"there is no output {unknown[0]!r}; the outputs are {', '.join(OUTPUTS)}")
    size = tensor.parameters.get("binary_data_size")
    try:
        texts = list(_flatten(tensor.data or []) if size is None else _unpack(body[len(header) :], size))
    except (struct.error, UnicodeDecodeError, TypeError) as reason:
        raise Malformed(f"the input {tensor.name!r} is not a tensor of texts in UTF-8") from reason
    if len(texts) != math.prod(tensor.shape):
        raise Malformed(f"the input {tensor.name!r} has shape {tensor.shape} and {len(texts)} texts")
    return Inference(texts, request)


def write_inference(inference: Inference, answer: Answer) -> tuple[bytes, Mapping[str, str]]:
    """Return the body of the response and its headers; outputs are binary where the request asks for it."""
    tensors = _tensors(answer)
    request = inference.request
    binary_by_default = bool(request.parameters.get("binary_data_output", False))
    outputs: list[dict[str, Any]] = []
    binary = b""
    for requested in request.outputs or [InferOutput(name=name) for name in tensors]:
        values = tensors.get(requested.name, np.array([""] * len(answer.results), dtype=object))
        output: dict[str, Any] = {
            "name": requested.name,
            "datatype": "FP32" if values.dtype == np.float32 else "BYTES",
            "shape": list(values.shape),
        }
        if requested.parameters.get("binary_data", binary_by_default):
            packed = values.tobytes() if values.dtype == np.float32 else _pack(values)
            output["parameters"] = {"binary_data_size": len(packed)}
            binary += packed
        else:
            output["data"] = values.ravel().tolist()
        outputs.append(output)
    version = "" if answer.version is None else str(answer.version)
    parameters: dict[str, Any] = {"task": answer.task, "labels": json.dumps(list(answer.labels)), "adapter_digest": answer.digest}
    if answer.abstain_below is not None:
        parameters["abstain_below"] = answer.abstain_below
    message = {"model_name": answer.model, "model_version": version, "parameters": parameters, "outputs": outputs}
    header = json.dumps(message if request.id is None else message | {"id": request.id}).encode()
    if not binary:
        return header, {"Content-Type": "application/json"}
    return header + binary, {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(header))}


def _tensors(answer: Answer) -> dict[str, np.ndarray[Any, Any]]:
    """Return the outputs by name; a refused text has an empty label, probabilities of 0 and an error, one below the threshold the former alone."""
    zeros = np.zeros(len(answer.labels), dtype=np.float32)
    rows = [zeros if result.scores is None else np.exp(result.scores) for result in answer.results]
    labels = [
        "" if result.scores is None or result.abstained else answer.labels[int(np.argmax(result.scores))]
        for result in answer.results
    ]
    errors = [f"{type(result.refusal).__name__}: {result.refusal.detail}" if result.refusal else "" for result in answer.results]
    tensors = {
        "label": np.array(labels, dtype=object),
        "probabilities": np.array(rows, dtype=np.float32).reshape(len(rows), len(zeros)),
    }
    return tensors | ({"error": np.array(errors, dtype=object)} if any(errors) else {})


def _flatten(data: Sequence[Any]) -> Iterator[str]:
    for element in data:
        if isinstance(element, list):
            yield from _flatten(element)
        elif isinstance(element, str):
            yield element
        else:
            raise TypeError(type(element).__name__)


def _unpack(packed: bytes, size: int) -> Iterator[str]:
    """Yield the texts of a binary tensor: each is its length in four bytes, little-endian, and its UTF-8 bytes."""
    offset = 0
    while offset < size:
        (length,) = struct.unpack_from("<I", packed, offset)
        text = packed[offset + 4 : offset + 4 + length]
        if len(text) != length:
            raise struct.error("the tensor ends within a text")
        yield text.decode()
        offset += 4 + length


def _pack(values: np.ndarray[Any, Any]) -> bytes:
    encoded = [str(value).encode() for value in values]
    return b"".join(struct.pack("<I", len(text)) + text for text in encoded)
