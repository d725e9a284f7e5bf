"""JSON shapes of requests and answers, as vLLM, SGLang, text-embeddings-inference and the Hugging Face clients define them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, Field

from ifed.errors import IFedError, Malformed, PairNotSupported
from ifed.messages.inference import (
    SEVERAL,
    AnsweringModel,
    Classification,
    ClassifyRequest,
    ClassifyResponse,
    LabelScore,
    Usage,
    whole_characters,
)
from ifed.messages.rounds import ErrorBody
from services.inference.service import Answer, Result

BATCH_HINT = 'a batch of single texts is a list of lists of one: [["first"], ["second"]]'


class PredictRequest(BaseModel):
    """Body of `POST /predict`: that of text-embeddings-inference, and `model` for the task."""

    inputs: Annotated[str | list[str | list[str]], AfterValidator(whole_characters)] = Field(
        examples=["I liked it.", [["I liked it."], ["I did not."]]]
    )
    raw_scores: bool = Field(False, description="return natural logarithms of the probabilities")
    truncate: bool = Field(
        False, description="truncate a text that is too long in its middle; otherwise it is refused as TextTooLong"
    )
    truncation_direction: Literal["Left", "Right", "left", "right"] | None = Field(
        None, description="accepted and ignored: texts are truncated in their middle"
    )
    model: str | None = Field(None, max_length=200, description="the task; the service's DEFAULT_TASK by default")

    @property
    def single(self) -> bool:
        """Whether this is one text and not a batch."""
        return isinstance(self.inputs, str) or (len(self.inputs) == 1 and isinstance(self.inputs[0], str))

    def texts(self) -> list[str]:
        """Return the texts.

        Raises:
            PairNotSupported: `inputs` has a pair of texts, as for a cross-encoder.
            Malformed: `inputs` has no text, or is neither one text nor a batch.
        """
        if isinstance(self.inputs, str):
            return [self.inputs]
        texts = [entry for entry in self.inputs if isinstance(entry, str)]
        if texts:
            if len(self.inputs) == 1:
                return texts
            if len(self.inputs) == 2 and len(texts) == 2:
                raise PairNotSupported(f"inputs is a pair of texts, but tasks here classify single texts; {BATCH_HINT}")
            raise Malformed(f"inputs is a list of texts; {BATCH_HINT}")
        if any(len(entry) == 2 for entry in self.inputs):
            raise PairNotSupported(f"inputs has a pair of texts, but tasks here classify single texts; {BATCH_HINT}")
        if not self.inputs or any(len(entry) != 1 for entry in self.inputs):
            raise Malformed(f"inputs has no text, or a list whose length is not one; {BATCH_HINT}")
        return [entry[0] for entry in self.inputs]


class HubParameters(BaseModel):
    """The parameters that Hugging Face clients send for text classification."""

    top_k: int | None = Field(None, ge=1, description="number of labels to return, the most probable first; all by default")
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = Field(
        None, description="`none` returns natural logarithms of the probabilities, any other value the probabilities"
    )
    truncate: bool = True


class HubRequest(BaseModel):
    """Body of `POST /models/{task}`, as Hugging Face inference clients send it."""

    inputs: Annotated[str | list[str], AfterValidator(whole_characters)] = Field(examples=["I liked it."])
    parameters: HubParameters = HubParameters()

    @property
    def texts(self) -> Sequence[str]:
        """The texts of the request."""
        return [self.inputs] if isinstance(self.inputs, str) else self.inputs


def classify_response(request: ClassifyRequest, answers: Sequence[Answer]) -> ClassifyResponse:
    """Return the body of a `POST /v1/classify` response.

    Args:
        answers: one for each model of the request, in order.

    Raises:
        IFedError: the request is a single string that no task could classify.
    """
    first, several = answers[0], len(answers) > 1
    if isinstance(request.input, str) and all(result.refusal for answer in answers for result in answer.results):
        first.single()
    tokens = sum(answer.tokens for answer in answers)
    return ClassifyResponse(
        id=f"classify-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=",".join(answer.model for answer in answers),
        data=[_classification(index, answer, request) for index in range(len(first.results)) for answer in answers],
        usage=Usage(prompt_tokens=tokens, total_tokens=tokens),
        task=",".join(answer.task for answer in answers),
        labels=[] if several else list(first.labels),
        adapter_version=None if several else first.version,
        adapter_digest=SEVERAL if several else first.digest,
        models=None if isinstance(request.model, str) else [_answering_model(answer) for answer in answers],
        abstain_below=None if several else first.abstain_below,
    )


def predict_response(request: PredictRequest, answer: Answer) -> list[LabelScore] | list[list[LabelScore] | ErrorBody]:
    """Return the body of a `POST /predict` response: flat for one text, nested for a batch.

    Raises:
        IFedError: the request is a single text that could not be classified.
    """
    if request.single:
        return _ranked(answer.labels, answer.single(), raw=request.raw_scores)
    return _ranked_batch(answer, raw=request.raw_scores, top_k=None)


def hub_response(request: HubRequest, answer: Answer) -> list[list[LabelScore] | ErrorBody]:
    """Return the body of a `POST /models/{task}` response, which is always nested.

    Raises:
        IFedError: the request is a single string that could not be classified.
    """
    if isinstance(request.inputs, str):
        answer.single()
    return _ranked_batch(answer, raw=request.parameters.function_to_apply == "none", top_k=request.parameters.top_k)


def answers_headers(answers: Sequence[Answer]) -> Mapping[str, str]:
    """Return the headers of one answer; of several the times and the number of tasks, since the names of many do not fit into headers."""
    if len(answers) == 1:
        return answer_headers(answers[0])
    headers = answer_headers(answers[0])
    return {name: headers[name] for name in ("X-Queue-Time", "X-Inference-Time")} | {"X-Tasks": str(len(answers))}


def answer_headers(answer: Answer) -> Mapping[str, str]:
    """Return the headers that name task, adapter version, digest and threshold, and the times in whole milliseconds."""
    headers: dict[str, Any] = {
        "X-Queue-Time": round(1000 * answer.queue_seconds),
        "X-Inference-Time": round(1000 * answer.model_seconds),
        "X-Task": answer.task,
        "X-Adapter-Version": "none" if answer.version is None else answer.version,
        "X-Adapter-Digest": answer.digest,
    }
    if answer.abstain_below is not None:  # for protocols that know no text without a label
        headers["X-Abstain-Below"] = answer.abstain_below
    return {name: str(value) for name, value in headers.items()}


def _answering_model(answer: Answer) -> AnsweringModel:
    return AnsweringModel(
        model=answer.model,
        task=answer.task,
        labels=list(answer.labels),
        adapter_version=answer.version,
        adapter_digest=answer.digest,
        prompt_tokens=answer.tokens,
        abstain_below=answer.abstain_below,
    )


def _classification(index: int, answer: Answer, request: ClassifyRequest) -> Classification:
    """Return the entry of a text; with a list of models it names the one that answered."""
    entry = _entry(index, answer.labels, answer.results[index], request)
    if isinstance(request.model, str):
        return entry
    return entry.model_copy(update={"model": answer.model, "adapter_version": answer.version})


def _entry(index: int, labels: Sequence[str], result: Result, request: ClassifyRequest) -> Classification:
    if result.scores is None:
        return Classification(index=index, label=None, probs=[], num_classes=len(labels), error=_error_body(result.refusal))
    return Classification(
        index=index,
        label=None if result.abstained else labels[int(np.argmax(result.scores))],
        probs=(result.scores if request.raw else np.exp(result.scores)).tolist(),
        num_classes=len(labels),
        truncated=result.truncated,
        top=None if request.top_k is None else _ranked(labels, result, raw=request.raw, top_k=request.top_k),
    )


def _ranked_batch(answer: Answer, *, raw: bool, top_k: int | None) -> list[list[LabelScore] | ErrorBody]:
    return [
        _error_body(result.refusal) if result.refusal else _ranked(answer.labels, result, raw=raw, top_k=top_k)
        for result in answer.results
    ]


def _ranked(labels: Sequence[str], result: Result, *, raw: bool = False, top_k: int | None = None) -> list[LabelScore]:
    """Return the labels by descending score; labels with equal scores keep the task's order."""
    assert result.scores is not None
    scores = result.scores if raw else np.exp(result.scores)
    order = np.argsort(-result.scores, kind="stable")[:top_k]
    return [LabelScore(label=labels[index], score=float(scores[index])) for index in order]


def _error_body(refusal: IFedError | None) -> ErrorBody:
    assert refusal is not None
    return ErrorBody(error=type(refusal).__name__, detail=refusal.detail)
