"""Routes in the shapes of text-embeddings-inference and of the Hugging Face inference clients. Each parses, calls, returns."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from ifed.contracts import ErrorBody
from ifed.errors import Unauthenticated, Unavailable
from ifed.serving import LabelScore
from ifed.serving_errors import NoDefaultTask, PairNotSupported
from ifed.web import refusals
from services.inference.about import About
from services.inference.endpoints_access import REFUSALS, Caller, ClassifierDep, DeadlineDep, Model
from services.inference.formats import HubRequest, PredictRequest, headers_of, hub_predictions, predictions

router = APIRouter(tags=["hub"], dependencies=[Caller])


@router.post("/predict", responses=REFUSALS | refusals(PairNotSupported, NoDefaultTask))
async def predict(
    body: PredictRequest, response: Response, classifier: ClassifierDep, deadline: DeadlineDep
) -> list[LabelScore] | list[list[LabelScore] | ErrorBody]:
    """Classify as text-embeddings-inference does: flat for one text, nested for a batch, the best label first."""
    answer = await classifier.classify(body.model, body.texts(), truncate=body.truncate, deadline=deadline)
    response.headers.update(headers_of(answer))
    return predictions(body, answer)


@router.post("/models/{model}", responses=REFUSALS)
async def classify_as_hub(
    model: Model, body: HubRequest, response: Response, classifier: ClassifierDep, deadline: DeadlineDep
) -> list[list[LabelScore] | ErrorBody]:
    """Classify as the Hugging Face inference clients expect: one list of labels for each text, the best first."""
    answer = await classifier.classify(model, body.texts, truncate=body.parameters.truncate, deadline=deadline)
    response.headers.update(headers_of(answer))
    return hub_predictions(body, answer)


@router.get("/info", responses=refusals(Unauthenticated, Unavailable))
async def info(request: Request, classifier: ClassifierDep) -> About:
    """What runs here and what it takes, in the fields of text-embeddings-inference."""
    about: About = request.app.state.about
    return about.with_default(await classifier.default())
