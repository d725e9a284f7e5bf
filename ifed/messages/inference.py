"""Messages of the inference service, in the formats that public clients expect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, Field

from ifed.messages.rounds import ErrorBody

Given = TypeVar("Given", bound=str | list[Any])
DEADLINE_HEADER = "X-Request-Timeout"
SEVERAL = "several"  # in place of a digest
ModelId = Annotated[str, Field(min_length=1, max_length=200)]


def _absent(value: object) -> bool:
    return value is None


def _distinct(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("name each model once")
    return names


def whole_characters(texts: Given) -> Given:
    """Return texts, in lists of any depth, unchanged; raise ValueError, which becomes a 422, for a lone surrogate."""
    if not isinstance(texts, str):
        for part in texts:
            whole_characters(part)
    elif not texts.isascii():
        texts.encode()
    return texts


class ClassifyRequest(BaseModel):
    """The body of `POST /v1/classify`, in the format of vLLM and SGLang.

    `model` names the task: `sentiment` as the aggregator serves it, `sentiment@7` its version 7, `sentiment@base` the base model,
    `sentiment@few-shot:12` the base model after 12 demonstrations. A list of names asks several tasks about every text at once, an
    extension of the format: tasks whose prompts begin alike run what they have in common once.
    """

    model: (
        ModelId | Annotated[list[ModelId], Field(min_length=1, json_schema_extra={"uniqueItems": True}), AfterValidator(_distinct)]
    ) = Field(examples=["sentiment", ["sentiment", "topic"]])
    input: Annotated[str | list[str], AfterValidator(whole_characters)] = Field(
        examples=["The plot was thin, but I laughed the whole way through."]
    )
    top_k: int | None = Field(None, ge=1, description="also list so many labels with their probability, most probable first")
    truncate: bool = Field(True, description="cut a text that is too long in its middle; else it is refused as TextTooLong")
    use_activation: bool | None = Field(None, description="false, as in vLLM: natural logarithms in place of the probabilities")

    @property
    def models(self) -> Sequence[str]:
        """The names of the tasks."""
        return [self.model] if isinstance(self.model, str) else self.model

    @property
    def raw(self) -> bool:
        """Whether natural logarithms are requested in place of probabilities."""
        return self.use_activation is False

    @property
    def texts(self) -> Sequence[str]:
        return [self.input] if isinstance(self.input, str) else self.input


class LabelScore(BaseModel):
    """A label and its score."""

    label: str = Field(examples=["positive"])
    score: float = Field(examples=[0.93])


class Classification(BaseModel):
    """The result for one text, or for one text under one of several tasks; `error` in place of a label if only this could not be classified."""

    index: int = Field(examples=[0], description="of the text in `input`")
    label: str | None = Field(
        examples=["positive"],
        description="the most probable label; null where its probability is below `abstain_below`, and beside an error",
    )
    probs: list[float] = Field(examples=[[0.07, 0.93]], description="in the order of the task's labels; empty beside an error")
    num_classes: int = Field(examples=[2])
    truncated: bool = Field(False, description="the text was longer than the model takes and was cut in its middle")
    top: list[LabelScore] | None = Field(None, exclude_if=_absent, description="there when `top_k` was given")
    error: ErrorBody | None = Field(None, exclude_if=_absent, description="there when this text could not be classified")
    model: str | None = Field(
        None, exclude_if=_absent, examples=["sentiment"], description="the task, as it was named; there when `model` was a list"
    )
    adapter_version: int | None = Field(
        None, exclude_if=_absent, examples=[7], description="of this task; there when `model` was a list and an adapter answered"
    )


class Usage(BaseModel):
    """The number of tokens read, in the format of OpenAI-style APIs."""

    prompt_tokens: int = Field(examples=[19])
    total_tokens: int = Field(examples=[19])
    completion_tokens: int = 0
    prompt_tokens_details: None = Field(None, description="null; SGLang has this field")


class AnsweringModel(BaseModel):
    """One of several tasks that answered, and the adapter that was used."""

    model: str = Field(examples=["sentiment"], description="as it was named")
    task: str = Field(examples=["sentiment"])
    labels: list[str] = Field(examples=[["negative", "positive"]])
    adapter_version: int | None = Field(examples=[7], description="null when no adapter answered")
    adapter_digest: str = Field(examples=["2ed5a1edb96d437f720685a8fd4fbe537d48299fe7c60dc5f8845491896c0bc4"])
    prompt_tokens: int = Field(examples=[19], description="tokens of all texts in the prompt of this task")
    abstain_below: float | None = Field(
        None, exclude_if=_absent, description="the probability below which this task gives a text no label; there if it has one"
    )


class ClassifyResponse(BaseModel):
    """The response of `POST /v1/classify`; `task`, `adapter_version` and `adapter_digest` identify the adapter that was used.

    With a list of models, `data` has an entry for each pair of a text and a task: the first text under each task in the order of the list,
    then the second, and so on.
    """

    id: str = Field(examples=["classify-9bf17f2847b046c7b2d5495f4b4f9682"])
    object: Literal["list"] = "list"
    created: int = Field(examples=[1795356861], description="seconds since 1970")
    model: str = Field(examples=["sentiment"], description="as it was named; several names are joined by commas")
    data: list[Classification]
    usage: Usage
    task: str = Field(examples=["sentiment"], description="several tasks are joined by commas")
    labels: list[str] = Field(examples=[["negative", "positive"]], description="empty when several tasks answered, see `models`")
    adapter_version: int | None = Field(
        examples=[7], description="null when no adapter answered, as for the base model and few-shot prompting, or several did"
    )
    adapter_digest: str = Field(
        examples=["2ed5a1edb96d437f720685a8fd4fbe537d48299fe7c60dc5f8845491896c0bc4"],
        description="sha256 of the adapter; `base`, `bare` or `few-shot:12`, as it was named, when no adapter answered; `several` of several",
    )
    models: list[AnsweringModel] | None = Field(
        None, exclude_if=_absent, description="there when `model` was a list: what answered, in the order of the list"
    )
    abstain_below: float | None = Field(
        None, exclude_if=_absent, description="the probability below which the task gives a text no label; there if it has one"
    )


class ServedModel(BaseModel):
    """A task that the service can classify for."""

    id: str = Field(examples=["sentiment"])
    object: Literal["model"] = "model"
    created: int = Field(examples=[1795356861])
    owned_by: str = "ifed"
    root: str = Field(examples=["smollm2-135m"], description="the language model underneath")
    labels: list[str] = Field(examples=[["negative", "positive"]])
    adapter_version: int = Field(examples=[7])
    adapter_digest: str = Field(examples=["2ed5a1edb96d437f720685a8fd4fbe537d48299fe7c60dc5f8845491896c0bc4"])
    accuracy: float | None = Field(None, examples=[0.888], description="on the clients' held-out examples, where it was evaluated")
    expected_calibration_error: float | None = Field(
        None, examples=[0.031], description="on the same examples, before the label bias is subtracted; null where it is unknown"
    )
    abstain_below: float | None = Field(
        None, examples=[0.7], description="the probability below which a text gets no label; null if every text gets one"
    )
    stale: str | None = Field(None, description="why it may not be the newest, when it could not be refreshed")


class ServedModels(BaseModel):
    """The response of `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ServedModel]
