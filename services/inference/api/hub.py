"""Routes of text-embeddings-inference (`/predict`, `/info`) and of the Hugging Face inference clients (`/models/{task}`)."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from ifed.errors import NoDefaultTask, Overloaded, PairNotSupported, Unauthenticated, Unavailable
from ifed.messages.inference import LabelScore, ServedModel
from ifed.messages.rounds import ErrorBody
from ifed.server.web import refusals
from services.inference.api.dependencies import REFUSALS, Caller, CallerRoute, ClassifierDep, DeadlineDep, Model
from services.inference.api.formats import HubRequest, PredictRequest, answer_headers, hub_response, predict_response

router = APIRouter(route_class=CallerRoute, tags=["hub"], dependencies=[Caller])


class About(BaseModel):
    """The model, its limits, and the labels of the default task."""

    model_id: str = Field(examples=["smollm2-135m"])
    model_sha: str = Field(examples=["9f" * 32], description="the model's fingerprint")
    model_dtype: str = Field(examples=["bfloat16"])
    model_int8: bool = Field(False, description="whether the layers' weights are quantised to int8, which changes scores slightly")
    model_type: dict[str, dict[str, dict[str, str | int]]] = Field(
        {"classifier": {"id2label": {}, "label2id": {}}}, description="labels of the default task; empty if there is none"
    )
    max_input_length: int = Field(examples=[1024], description="tokens of a text with its template")
    max_batch_tokens: int = Field(examples=[256], description="tokens of one forward pass")
    max_client_batch_size: int = Field(examples=[512], description="texts in one request")
    max_request_tokens: int = Field(examples=[131_072], description="tokens in one request")
    max_queue: int = Field(examples=[1024], description="texts that may wait")
    auto_truncate: bool = False
    version: str = Field(examples=["0.1.0"])

    def with_default(self, served: ServedModel | None) -> About:
        """Return a copy with the labels of the default task."""
        if served is None:
            return self
        id2label: dict[str, str | int] = {str(index): label for index, label in enumerate(served.labels)}
        label2id: dict[str, str | int] = {label: index for index, label in enumerate(served.labels)}
        return self.model_copy(update={"model_type": {"classifier": {"id2label": id2label, "label2id": label2id}}})


@router.post("/predict", responses=REFUSALS | refusals(PairNotSupported, NoDefaultTask))
async def predict(
    body: PredictRequest, response: Response, classifier: ClassifierDep, deadline: DeadlineDep
) -> list[LabelScore] | list[list[LabelScore] | ErrorBody]:
    """Classify as text-embeddings-inference does: flat for one text, nested for a batch, the best label first."""
    answer = await classifier.classify(body.model, body.texts(), truncate=body.truncate, deadline=deadline)
    response.headers.update(answer_headers(answer))
    return predict_response(body, answer)


@router.post("/models/{model}", responses=REFUSALS)
async def classify_as_hub(
    model: Model, body: HubRequest, response: Response, classifier: ClassifierDep, deadline: DeadlineDep
) -> list[list[LabelScore] | ErrorBody]:
    """Classify texts in the format of the Hugging Face inference clients: one list of labels with scores per text, best first.

    `top_k` shortens the lists. In a batch, a text that cannot be classified gets an error in place of its list; a single string is
    refused with that error. Long texts are truncated unless `truncate` is false.
    """
    answer = await classifier.classify(model, body.texts, truncate=body.parameters.truncate, deadline=deadline)
    response.headers.update(answer_headers(answer))
    return hub_response(body, answer)


@router.get("/info", responses=refusals(Unauthenticated, Overloaded, Unavailable))
async def info(request: Request, classifier: ClassifierDep) -> About:
    """Describe the model and its limits in the fields of text-embeddings-inference."""
    about: About = request.app.state.about
    return about.with_default(await classifier.default())
