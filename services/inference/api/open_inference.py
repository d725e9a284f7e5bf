"""Routes of the Open Inference Protocol, version 2, under `/v2`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request, Response

from ifed import __version__
from ifed.errors import Malformed, NothingYet, OtherModel, Overloaded, Unauthenticated, Unavailable, UnknownTask, UnknownVersion
from ifed.server.web import refusals
from services.inference.api.dependencies import REFUSALS, Caller, ClassifierDep, DeadlineDep, Model, Version, deadline_in, earlier
from services.inference.api.formats import answer_headers
from services.inference.api.open_inference_messages import (
    HEADER_LENGTH,
    Inference,
    ModelMetadata,
    ServerMetadata,
    parse_inference,
    request_schema,
    write_inference,
)

MODEL_REFUSALS = refusals(Unauthenticated, Malformed, UnknownTask, UnknownVersion, NothingYet, OtherModel, Overloaded, Unavailable)
REQUEST_BODY: dict[str, Any] = {
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
        "description": "the outputs `label`, `probabilities` and, if a text was refused, `error`; binary where the request asks for it",
        "content": {
            "application/json": {"schema": {"type": "object"}, "example": EXAMPLE},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
health = APIRouter(prefix="/v2", tags=["open inference"])
router = APIRouter(prefix="/v2", tags=["open inference"], dependencies=[Caller])


async def _inference(request: Request, header_length: Annotated[int | None, Header(alias=HEADER_LENGTH, ge=0)] = None) -> Inference:
    return parse_inference(await request.body(), header_length)


InferenceDep = Annotated[Inference, Depends(_inference)]


@health.get("")
async def get_server() -> ServerMetadata:
    """Return the server's name, version and protocol extensions."""
    return ServerMetadata(version=__version__)


@health.get("/health/live", response_class=Response)
async def get_live() -> Response:
    """Answer while the process is alive."""
    return Response()


@health.get("/health/ready", response_class=Response, responses=refusals(Unavailable))
async def get_ready(classifier: ClassifierDep) -> Response:  # noqa: ARG001  # the dependency refuses until the model is loaded
    """Answer once the model is loaded."""
    return Response()


@router.get("/models/{model}", responses=MODEL_REFUSALS)
async def get_metadata(model: Model, classifier: ClassifierDep) -> ModelMetadata:
    """Return the inputs and outputs of a task."""
    return ModelMetadata.of(model, await classifier.model(model))


@router.get("/models/{model}/versions/{version}", responses=MODEL_REFUSALS)
async def get_version_metadata(model: Model, version: Version, classifier: ClassifierDep) -> ModelMetadata:
    """Return the inputs and outputs of one version of a task."""
    return ModelMetadata.of(model, await classifier.model(f"{model}@{version}"))


@router.get("/models/{model}/ready", response_class=Response, responses=MODEL_REFUSALS)
async def get_model_ready(model: Model, classifier: ClassifierDep) -> Response:
    """Answer 200 if the task can be served."""
    await classifier.model(model)
    return Response()


@router.get("/models/{model}/versions/{version}/ready", response_class=Response, responses=MODEL_REFUSALS)
async def get_version_ready(model: Model, version: Version, classifier: ClassifierDep) -> Response:
    """Answer 200 if this version of the task can be served."""
    await classifier.model(f"{model}@{version}")
    return Response()


@router.post("/models/{model}/infer", responses=ANSWER | REFUSALS, response_class=Response, openapi_extra=REQUEST_BODY)
async def infer(model: Model, inference: InferenceDep, classifier: ClassifierDep, deadline: DeadlineDep) -> Response:
    """Classify the texts of a BYTES tensor."""
    latest = earlier(deadline, deadline_in(inference.timeout))
    answer = await classifier.classify(model, inference.texts, deadline=latest)
    body, headers = write_inference(inference, answer)
    return Response(body, headers={**answer_headers(answer), **headers})


@router.post(
    "/models/{model}/versions/{version}/infer", responses=ANSWER | REFUSALS, response_class=Response, openapi_extra=REQUEST_BODY
)
async def infer_version(
    model: Model, version: Version, inference: InferenceDep, classifier: ClassifierDep, deadline: DeadlineDep
) -> Response:
    """Classify the texts of a BYTES tensor with one version of a task."""
    return await infer(f"{model}@{version}", inference, classifier, deadline)
