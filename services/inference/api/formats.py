"""Answers in the shapes that vLLM, SGLang, text-embeddings-inference and the Hugging Face clients know. Knows no HTTP and no model."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, Field

from ifed.errors import IFedError, Malformed, PairNotSupported
from ifed.messages.inference import Classification, ClassifyRequest, ClassifyResponse, LabelScore, Usage, whole_characters
from ifed.messages.rounds import ErrorBody
from services.inference.service import Answer, Result

BATCH_HINT = 'a batch of single texts is a list of lists of one: [["first"], ["second"]]'


class PredictRequest(BaseModel):
    """Body of `POST /predict`, as text-embeddings-inference takes it, and `model`, which names the task."""

    inputs: Annotated[str | list[str | list[str]], AfterValidator(whole_characters)] = Field(
        examples=["I liked it.", [["I liked it."], ["I did not."]]]
    )
    raw_scores: bool = Field(False, description="natural logarithms of the probabilities")
    truncate: bool = Field(False, description="cut a text that is too long in its middle; else it is refused as TextTooLong")
    truncation_direction: Literal["Left", "Right", "left", "right"] | None = Field(None, description="accepted; the middle is cut")
    model: str | None = Field(None, max_length=200, description="the task; the service's DEFAULT_TASK when not given")

    @property
    def single(self) -> bool:
        return isinstance(self.inputs, str) or (len(self.inputs) == 1 and isinstance(self.inputs[0], str))

    def texts(self) -> list[str]:
        """The single texts.

        Raises:
            PairNotSupported: a pair, as cross-encoders take it.
            Malformed: no text, or neither one text nor a batch.
        """
        if isinstance(self.inputs, str):
            return [self.inputs]
        found = [one for one in self.inputs if isinstance(one, str)]
        if found:
            if len(self.inputs) == 1:
                return found
            if len(self.inputs) == 2 and len(found) == 2:
                raise PairNotSupported(f"inputs is a pair of texts; tasks here classify single texts, and {BATCH_HINT}")
            raise Malformed(f"inputs is a list of texts; {BATCH_HINT}")
        if any(len(one) == 2 for one in self.inputs):
            raise PairNotSupported(f"inputs holds a pair of texts; tasks here classify single texts, and {BATCH_HINT}")
        if not self.inputs or any(len(one) != 1 for one in self.inputs):
            raise Malformed(f"inputs holds no text, or a list of another length than one; {BATCH_HINT}")
        return [one[0] for one in self.inputs]


class HubParameters(BaseModel):
    """What Hugging Face clients may ask of a text classification."""

    top_k: int | None = Field(None, ge=1, description="so many labels, the most probable first; all when not given")
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = Field(
        None, description="`none` gives natural logarithms of the probabilities, anything else the probabilities"
    )
    truncate: bool = True


class HubRequest(BaseModel):
    """Body of `POST /models/{task}`, as Hugging Face inference clients send it."""

    inputs: Annotated[str | list[str], AfterValidator(whole_characters)] = Field(examples=["I liked it."])
    parameters: HubParameters = HubParameters()

    @property
    def texts(self) -> Sequence[str]:
        return [self.inputs] if isinstance(self.inputs, str) else self.inputs


def classified(request: ClassifyRequest, answer: Answer) -> ClassifyResponse:
    """The answer of `/v1/classify`.

    Raises:
        IFedError: a request of one text given as a string, which could not be classified.
    """
    if isinstance(request.input, str):
        answer.only()
    return ClassifyResponse(
        id=f"classify-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=answer.model,
        data=[_classification(index, answer.labels, one, request) for index, one in enumerate(answer.results)],
        usage=Usage(prompt_tokens=answer.tokens, total_tokens=answer.tokens),
        task=answer.task,
        labels=list(answer.labels),
        adapter_version=answer.version,
        adapter_digest=answer.digest,
    )


def _classification(index: int, labels: Sequence[str], result: Result, request: ClassifyRequest) -> Classification:
    if result.scores is None:
        return Classification(index=index, label=None, probs=[], num_classes=len(labels), error=error_body(result.refusal))
    return Classification(
        index=index,
        label=labels[int(np.argmax(result.scores))],
        probs=(result.scores if request.raw else np.exp(result.scores)).tolist(),
        num_classes=len(labels),
        truncated=result.truncated,
        top=None if request.top_k is None else ranked(labels, result, raw=request.raw, top_k=request.top_k),
    )


def predictions(request: PredictRequest, answer: Answer) -> list[LabelScore] | list[list[LabelScore] | ErrorBody]:
    """The answer of `/predict`: flat for one text, nested for a batch.

    Raises:
        IFedError: a single text that could not be classified.
    """
    if request.single:
        return ranked(answer.labels, answer.only(), raw=request.raw_scores)
    return _each(answer, raw=request.raw_scores, top_k=None)


def hub_predictions(request: HubRequest, answer: Answer) -> list[list[LabelScore] | ErrorBody]:
    """The answer of `/models/{task}`: always nested.

    Raises:
        IFedError: a single text that could not be classified.
    """
    if isinstance(request.inputs, str):
        answer.only()
    return _each(answer, raw=request.parameters.function_to_apply == "none", top_k=request.parameters.top_k)


def _each(answer: Answer, *, raw: bool, top_k: int | None) -> list[list[LabelScore] | ErrorBody]:
    return [error_body(one.refusal) if one.refusal else ranked(answer.labels, one, raw=raw, top_k=top_k) for one in answer.results]


def ranked(labels: Sequence[str], result: Result, *, raw: bool = False, top_k: int | None = None) -> list[LabelScore]:
    """Labels with their scores, the best first; of equal scores the task's order stands."""
    assert result.scores is not None
    scores = result.scores if raw else np.exp(result.scores)
    order = np.argsort(-result.scores, kind="stable")[:top_k]
    return [LabelScore(label=labels[at], score=float(scores[at])) for at in order]


def error_body(refusal: IFedError | None) -> ErrorBody:
    """The error of one text among several."""
    assert refusal is not None
    return ErrorBody(error=type(refusal).__name__, detail=refusal.detail)


def headers_of(answer: Answer) -> Mapping[str, str]:
    """What answered and how long it took, in whole milliseconds, as headers."""
    said: dict[str, Any] = {
        "X-Queue-Time": round(1000 * answer.queue_seconds),
        "X-Inference-Time": round(1000 * answer.model_seconds),
        "X-Task": answer.task,
        "X-Adapter-Version": "none" if answer.version is None else answer.version,
        "X-Adapter-Digest": answer.digest,
    }
    return {name: str(value) for name, value in said.items()}
