"""What passes between the service and those who ask it: prepared texts in, results out. Computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from ifed.errors import IFedError
from services.inference.engine import Pass, Scores

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Prepared(Generic[Item]):
    """One text as the engine takes it."""

    item: Item
    tokens: int
    truncated: bool


@dataclass(frozen=True, slots=True)
class Result:
    """One text's log-probabilities over the labels, or why it has none."""

    scores: Scores | None
    truncated: bool = False
    refusal: IFedError | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request got, and exactly what answered it."""

    model: str
    task: str
    version: int | None
    digest: str
    labels: Sequence[str]
    results: Sequence[Result]
    tokens: int
    queue_seconds: float
    model_seconds: float
    passes: Sequence[Pass] = ()

    def only(self) -> Result:
        """The result of a request of one text.

        Raises:
            IFedError: why this text has none.
        """
        (result,) = self.results
        if result.refusal is not None:
            raise result.refusal
        return result
