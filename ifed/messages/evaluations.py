"""Messages of a version's evaluation in detail: by label and by client."""

from __future__ import annotations

from pydantic import Field

from ifed.messages.rounds import Evaluation
from ifed.messages.tasks import Message, Name


class LabelEvaluation(Message):
    """How well one label is recognised."""

    label: str
    texts: int = Field(description="held-out texts with this label")
    predicted: int = Field(description="held-out texts that got this label")
    precision: float | None = Field(description="share of `predicted` that is right; null if nothing got this label")
    recall: float | None = Field(description="share of `texts` that got this label; null if no text has it")


class ClientEvaluation(Message):
    """How well a version does on the held-out texts of one client."""

    client: Name
    texts: int
    correct: int
    accuracy: float


class EvaluationDetails(Evaluation):
    """The evaluation of a version by label and by client, and its confusion matrix."""

    round: int = Field(description="the round in which clients evaluated the version")
    labels: list[LabelEvaluation] = Field(description="in the order of the task's labels")
    confusion: list[list[int]] = Field(description="a row for each true label, a column for each predicted one, in the same order")
    clients: list[ClientEvaluation] = Field(description="those that hold texts out, by name")
