"""Routes of the inference service in its own shape, vLLM's and SGLang's, and all other routers joined to it. Knows no model."""

from __future__ import annotations

from fastapi import APIRouter, Response

from ifed.errors import Malformed, NothingYet, OtherModel, Unauthenticated, Unavailable, UnknownTask, UnknownVersion
from ifed.messages.inference import ClassifyRequest, ClassifyResponse, ServedModel, ServedModels
from ifed.server.web import refusals
from services.inference.api.dependencies import REFUSALS, Caller, ClassifierDep, DeadlineDep, Model
from services.inference.api.formats import classified, headers_of

router = APIRouter(prefix="/v1", tags=["classification"], dependencies=[Caller])


@router.post("/classify", responses=REFUSALS)
async def classify(body: ClassifyRequest, response: Response, classifier: ClassifierDep, deadline: DeadlineDep) -> ClassifyResponse:
    """Classify one text or several with a task's adapter, as vLLM and SGLang answer."""
    answer = await classifier.classify(body.model, body.texts, truncate=body.truncate, deadline=deadline)
    response.headers.update(headers_of(answer))
    return classified(body, answer)


@router.get("/models", responses=refusals(Unauthenticated, Unavailable))
async def list_models(classifier: ClassifierDep) -> ServedModels:
    """The tasks this service answers for right now; others are fetched when they are first asked for."""
    return classifier.models()


@router.get(
    "/models/{model}",
    responses=refusals(Unauthenticated, Malformed, UnknownTask, UnknownVersion, NothingYet, OtherModel, Unavailable),
)
async def get_model(model: Model, classifier: ClassifierDep) -> ServedModel:
    """One task, or one of its versions as `task@7`; fetched if it is not held yet."""
    return await classifier.model(model)
