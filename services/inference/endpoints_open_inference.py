"""Routes of the Open Inference Protocol, version 2. Each parses, calls, returns."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request, Response

from ifed import __version__
from ifed.errors import Malformed, NothingYet, Unauthenticated, Unavailable, UnknownTask, UnknownVersion
from ifed.serving_errors import OtherModel
from ifed.web import refusals
from services.inference.deadlines import deadline_in, sooner
from services.inference.endpoints_access import REFUSALS, Caller, ClassifierDep, DeadlineDep, Model, Version
from services.inference.formats import headers_of
from services.inference.open_inference import (
    HEADER_LENGTH,
    Inference,
    ModelMetadata,
    ServerMetadata,
    read_inference,
    request_schema,
    write_inference,
)

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
