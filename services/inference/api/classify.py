"""Routes under `/v1`: classification in the shape of vLLM and SGLang, and the tasks that are served."""

from __future__ import annotations

from fastapi import APIRouter, Response

from ifed.errors import Malformed, NothingYet, OtherModel, Overloaded, Unauthenticated, Unavailable, UnknownTask, UnknownVersion
from ifed.messages.inference import ClassifyRequest, ClassifyResponse, ServedModel, ServedModels
from ifed.server.web import refusals
from services.inference.api.dependencies import REFUSALS, Caller, CallerRoute, ClassifierDep, DeadlineDep, Model
from services.inference.api.formats import answers_headers, classify_response

router = APIRouter(route_class=CallerRoute, prefix="/v1", tags=["classification"], dependencies=[Caller])


@router.post("/classify", responses=REFUSALS)
async def classify(body: ClassifyRequest, response: Response, classifier: ClassifierDep, deadline: DeadlineDep) -> ClassifyResponse:
    """Classify one text or several with the adapter of a task, or of several; the response has the fields of vLLM and SGLang."""
    answers = await classifier.classify_tasks(body.models, body.texts, truncate=body.truncate, deadline=deadline)
    response.headers.update(answers_headers(answers))
    return classify_response(body, answers)


@router.get("/models", responses=refusals(Unauthenticated, Overloaded, Unavailable))
async def list_models(classifier: ClassifierDep) -> ServedModels:
    """List the tasks whose adapters are cached; the adapter of any other task is fetched at its first request."""
    return classifier.models()


@router.get(
    "/models/{model}",
    responses=refusals(Unauthenticated, Malformed, UnknownTask, UnknownVersion, NothingYet, OtherModel, Overloaded, Unavailable),
)
async def get_model(model: Model, classifier: ClassifierDep) -> ServedModel:
    """Return one task, or one of its versions as `task@7`; its adapter is fetched unless it is cached."""
    return await classifier.model(model)
