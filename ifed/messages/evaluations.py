"""Messages of a version's evaluation in detail: by label and by client."""

from __future__ import annotations

from pydantic import Field

from ifed.messages.rounds import Evaluation, LabelEvaluation
from ifed.messages.tasks import Message, Name


class ClientEvaluation(Message):
    """How well a version does on the held-out texts of one client."""

    client: Name
    texts: int
    correct: int
    accuracy: float


class ConfidenceBin(Message):
    """The held-out texts whose highest probability is from `least` to less than `least` + 0.1."""

    least: float
    texts: int
    correct: int
    confidence: float | None = Field(description="mean of their highest probabilities; null without texts")


class EvaluationDetails(Evaluation):
    """The evaluation of a version by label, by confidence and by client, and its confusion matrix."""

    round: int = Field(description="the round in which clients evaluated the version")
    labels: list[LabelEvaluation] = Field(description="in the order of the task's labels")
    confusion: list[list[int]] = Field(description="a row for each true label, a column for each predicted one, in the same order")
    confidence: list[ConfidenceBin] | None = Field(
        None, description="the ten bins of `expected_calibration_error`, the lowest first; null where that is null"
    )
    clients: list[ClientEvaluation] = Field(description="those that hold texts out, by name")
