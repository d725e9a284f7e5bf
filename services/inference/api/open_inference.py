"""Messages of the Open Inference Protocol, version 2, in JSON and with binary tensors. Knows no HTTP and no model."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Header, Request, Response
from pydantic import BaseModel, Field, ValidationError

from ifed import __version__
from ifed.errors import Malformed, NothingYet, OtherModel, Unauthenticated, Unavailable, UnknownTask, UnknownVersion
from ifed.messages.inference import ServedModel
from ifed.server.web import refusals
from services.inference.api.dependencies import REFUSALS, Caller, ClassifierDep, DeadlineDep, Model, Version, deadline_in, sooner
from services.inference.api.formats import headers_of
from services.inference.service import Answer

HEADER_LENGTH = "Inference-Header-Content-Length"
LONGEST_TIMEOUT = 10**15  # microseconds, thirty years
OUTPUTS = ("label", "probabilities", "error")


class TensorMetadata(BaseModel):
    """Name, type and shape of a tensor; -1 is any size."""

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
    """The texts: one tensor of type BYTES, of shape [n] or [n, 1]."""

    name: str = Field(examples=["text"])
    shape: list[int] = Field(examples=[[1]])
    datatype: str = Field(examples=["BYTES"])
    parameters: dict[str, Any] = {}
    data: list[Any] | None = Field(None, examples=[["I liked it."]])


class InferOutput(BaseModel):
    """An output that is asked for."""

    name: str = Field(examples=["label"])
    parameters: dict[str, Any] = {}


class InferRequest(BaseModel):
    """Body of `POST …/infer`, or the head of it where tensors follow in binary form."""

    id: str | None = None
    inputs: list[InferInput] = Field(min_length=1, max_length=1)
    outputs: list[InferOutput] = []
    parameters: dict[str, Any] = Field({}, description="`timeout` is a deadline in microseconds")


def request_schema() -> dict[str, Any]:
    """The JSON schema of a request with every part written out in its place, as a route without a body model needs it."""
    whole = InferRequest.model_json_schema()
    definitions = whole.pop("$defs")

    def written_out(part: Any) -> Any:
        if isinstance(part, list):
            return [written_out(one) for one in part]
        if not isinstance(part, dict):
            return part
        name = part.get("$ref", "").rsplit("/", 1)[-1]
        return written_out(definitions[name]) if name else {key: written_out(value) for key, value in part.items()}

    schema: dict[str, Any] = written_out(whole)
    return schema


@dataclass(frozen=True, slots=True)
class Inference:
    """A request read: its texts, and how its answer is to be written."""

    texts: list[str]
    request: InferRequest

    @property
    def timeout(self) -> float | None:
        """Seconds the caller waits at the most."""
        microseconds = self.request.parameters.get("timeout")
        if isinstance(microseconds, bool) or not isinstance(microseconds, int | float) or not microseconds > 0:
            return None
        return min(microseconds, LONGEST_TIMEOUT) / 1e6


def read_inference(body: bytes, header_length: int | None) -> Inference:
    """A request as it came over HTTP.

    Args:
        header_length: bytes of JSON at the front, when binary tensors follow.

    Raises:
        Malformed: not a request of the protocol, or not one tensor of texts.
    """
    head = body if header_length is None else body[:header_length]
    try:
        request = InferRequest.model_validate_json(head)
    except ValidationError as reason:
        problems = "; ".join(f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}" for one in reason.errors())
        raise Malformed(f"this is no request of the Open Inference Protocol: {problems}") from reason
    (tensor,) = request.inputs
    if tensor.datatype != "BYTES":
        raise Malformed(f"the input {tensor.name!r} is {tensor.datatype}; texts are BYTES")
    if unknown := [one.name for one in request.outputs if one.name not in OUTPUTS]:
        raise Malformed(f"there is no output {unknown[0]!r}; the outputs are {', '.join(OUTPUTS)}")
    size = tensor.parameters.get("binary_data_size")
    try:
        texts = list(_flat(tensor.data or []) if size is None else _unpacked(body[len(head) :], size))
    except (struct.error, UnicodeDecodeError, TypeError) as reason:
        raise Malformed(f"the input {tensor.name!r} does not hold texts in UTF-8") from reason
    if len(texts) != int(np.prod(tensor.shape)):
        raise Malformed(f"the input {tensor.name!r} has shape {tensor.shape} and holds {len(texts)} texts")
    return Inference(texts, request)


def write_inference(inference: Inference, answer: Answer) -> tuple[bytes, Mapping[str, str]]:
    """The answer as bytes, and the headers it needs. Outputs are binary where the request wants them so."""
    tensors = _tensors(answer)
    request = inference.request
    everywhere = bool(request.parameters.get("binary_data_output", False))
    wanted = request.outputs or [InferOutput(name=name) for name in tensors]
    outputs: list[dict[str, Any]] = []
    tail = b""
    for one in wanted:
        values = tensors.get(one.name, np.array([""] * len(answer.results), dtype=object))
        said: dict[str, Any] = {
            "name": one.name,
            "datatype": "FP32" if values.dtype == np.float32 else "BYTES",
            "shape": list(values.shape),
        }
        if one.parameters.get("binary_data", everywhere):
            packed = values.tobytes() if values.dtype == np.float32 else _packed(values)
            said["parameters"] = {"binary_data_size": len(packed)}
            tail += packed
        else:
            said["data"] = values.ravel().tolist()
        outputs.append(said)
    version = "" if answer.version is None else str(answer.version)
    parameters = {"task": answer.task, "labels": json.dumps(list(answer.labels)), "adapter_digest": answer.digest}
    reply = {"model_name": answer.model, "model_version": version, "parameters": parameters, "outputs": outputs}
    head = json.dumps(reply if request.id is None else reply | {"id": request.id}).encode()
    if not tail:
        return head, {"Content-Type": "application/json"}
    return head + tail, {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}


def _tensors(answer: Answer) -> dict[str, np.ndarray[Any, Any]]:
    """Outputs by name; a text that failed has an empty label, probabilities of 0 and its error."""
    nothing = np.zeros(len(answer.labels), dtype=np.float32)
    rows = [nothing if one.scores is None else np.exp(one.scores) for one in answer.results]
    labels = ["" if one.scores is None else answer.labels[int(np.argmax(one.scores))] for one in answer.results]
    errors = [f"{type(one.refusal).__name__}: {one.refusal.detail}" if one.refusal else "" for one in answer.results]
    found = {
        "label": np.array(labels, dtype=object),
        "probabilities": np.array(rows, dtype=np.float32).reshape(len(rows), len(nothing)),
    }
    return found | ({"error": np.array(errors, dtype=object)} if any(errors) else {})


def _flat(data: Sequence[Any]) -> Iterator[str]:
    for one in data:
        if isinstance(one, list):
            yield from _flat(one)
        elif isinstance(one, str):
            yield one
        else:
            raise TypeError(type(one).__name__)


def _unpacked(tail: bytes, size: int) -> Iterator[str]:
    """Texts as the protocol packs them: four bytes of length, little-endian, then the text."""
    at = 0
    while at < size:
        (length,) = struct.unpack_from("<I", tail, at)
        text = tail[at + 4 : at + 4 + length]
        if len(text) != length:
            raise struct.error("cut off")
        yield text.decode()
        at += 4 + length


def _packed(values: np.ndarray[Any, Any]) -> bytes:
    encoded = [str(one).encode() for one in values]
    return b"".join(struct.pack("<I", len(one)) + one for one in encoded)


health = APIRouter(prefix="/v2", tags=["open inference"])
router = APIRouter(prefix="/v2", tags=["open inference"], dependencies=[Caller])
KNOWN = refusals(Unauthenticated, Malformed, UnknownTask, UnknownVersion, NothingYet, OtherModel, Unavailable)
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": request_schema()},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
EXAMPLE = {
    "model_name": "sentiment",
    "model_version": "7",
    "parameters": {"task": "sentiment", "labels": '["negative", "positive"]', "adapter_digest": "2ed5a1edb96d…"},
    "outputs": [
        {"name": "label", "datatype": "BYTES", "shape": [1], "data": ["positive"]},
        {"name": "probabilities", "datatype": "FP32", "shape": [1, 2], "data": [0.07, 0.93]},
    ],
}
ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "outputs `label`, `probabilities` and, if a text failed, `error`; in JSON, or binary where the request says so",
        "content": {
            "application/json": {"schema": {"type": "object"}, "example": EXAMPLE},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


async def _inference(request: Request, header_length: Annotated[int | None, Header(alias=HEADER_LENGTH, ge=0)] = None) -> Inference:
    return read_inference(await request.body(), header_length)


InferenceDep = Annotated[Inference, Depends(_inference)]


@health.get("")
async def get_server() -> ServerMetadata:
    """The server's name, version and protocol extensions."""
    return ServerMetadata(version=__version__)


@health.get("/health/live", response_class=Response)
async def get_live() -> Response:
    """The process answers."""
    return Response()


@health.get("/health/ready", response_class=Response, responses=refusals(Unavailable))
async def get_ready(classifier: ClassifierDep) -> Response:  # noqa: ARG001  # that there is one is the answer
    """The model is loaded."""
    return Response()


@router.get("/models/{model}", responses=KNOWN)
async def get_metadata(model: Model, classifier: ClassifierDep) -> ModelMetadata:
    """Inputs and outputs of a task."""
    return ModelMetadata.of(model, await classifier.model(model))


@router.get("/models/{model}/versions/{version}", responses=KNOWN)
async def get_version_metadata(model: Model, version: Version, classifier: ClassifierDep) -> ModelMetadata:
    """Inputs and outputs of one version of a task."""
    return ModelMetadata.of(model, await classifier.model(f"{model}@{version}"))


@router.get("/models/{model}/ready", response_class=Response, responses=KNOWN)
async def get_model_ready(model: Model, classifier: ClassifierDep) -> Response:
    """200 when the task can be served."""
    await classifier.model(model)
    return Response()


@router.get("/models/{model}/versions/{version}/ready", response_class=Response, responses=KNOWN)
async def get_version_ready(model: Model, version: Version, classifier: ClassifierDep) -> Response:
    """200 when this version of the task can be served."""
    await classifier.model(f"{model}@{version}")
    return Response()


@router.post("/models/{model}/infer", responses=ANSWER | REFUSALS, response_class=Response, openapi_extra=BODY)
async def infer(model: Model, inference: InferenceDep, classifier: ClassifierDep, deadline: DeadlineDep) -> Response:
    """Classify the texts of a BYTES tensor."""
    latest = sooner(deadline, deadline_in(inference.timeout))
    answer = await classifier.classify(model, inference.texts, deadline=latest)
    body, headers = write_inference(inference, answer)
    return Response(body, headers={**headers_of(answer), **headers})


@router.post("/models/{model}/versions/{version}/infer", responses=ANSWER | REFUSALS, response_class=Response, openapi_extra=BODY)
async def infer_version(
    model: Model, version: Version, inference: InferenceDep, classifier: ClassifierDep, deadline: DeadlineDep
) -> Response:
    """Classify the texts of a BYTES tensor with one version of a task."""
    return await infer(f"{model}@{version}", inference, classifier, deadline)
