"""The texts on which results are reported: A, which earlier choices have read, and B, which no choice reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.federated.evaluation import evaluate_readings, evaluate_scores
from ifed.messages.texts import LabelledText
from ifed.tensors.values import Float32, Int64

A, B, BOTH, DEVELOPMENT = "A", "B", "A+B", "development"
DEVELOPMENT_TEXTS = 500  # training texts after those that clients have, on which choices are made
Figures = dict[str, float]
BySet = dict[str, Figures]


@dataclass(frozen=True, slots=True)
class EvaluationTexts:
    """Test texts, of which the first are A and the others B, and after them development texts.

    Attributes:
        examples: all of them, in this order.
        first: number of texts A.
        development: number of development texts.
    """

    examples: Sequence[LabelledText[int]]
    first: int
    development: int = 0

    @property
    def slices(self) -> Mapping[str, slice]:
        """The place of each set among the examples; a set without texts is left out."""
        end = len(self.examples) - self.development
        sets = {A: slice(0, self.first), B: slice(self.first, end), BOTH: slice(0, end), DEVELOPMENT: slice(end, None)}
        if self.first == end:
            del sets[B], sets[BOTH]
        if not self.development:
            del sets[DEVELOPMENT]
        return sets

    def figures(self, truths: Int64, scores: Float32) -> BySet:
        """Return accuracy and macro-F1 of the most probable labels on each set, from log-probabilities (n, C) of all examples."""
        return {name: _figures(truths[part], scores[part]) for name, part in self.slices.items()}

    def readings(self, truths: Int64, scores: Float32, bias: Float32, shares: Float32) -> dict[str, BySet]:
        """Return the figures with the label prior kept (`plain`) and matched; see `evaluate_readings`."""
        result: dict[str, BySet] = {"plain": {}, "matched": {}}
        for name, part in self.slices.items():
            both = evaluate_readings(truths[part], scores[part], bias, shares)
            for reading, suffix in (("plain", ""), ("matched", "_prior_matched")):
                result[reading][name] = {"accuracy": both[f"accuracy{suffix}"], "macro_f1": both[f"macro_f1{suffix}"]}
        return result


def _figures(truths: Int64, scores: Float32) -> Figures:
    result = evaluate_scores(truths, scores, scores.shape[1])
    return {"accuracy": result.accuracy, "macro_f1": result.macro_f1}


def with_first_texts(readings: Mapping[str, BySet], served: str) -> dict[str, Any]:
    """Return the accuracies on texts A as a row of the first release has them."""
    row: dict[str, Any] = dict(readings[served][A])
    return row | {"accuracy_plain": readings["plain"][A]["accuracy"], "accuracy_prior_matched": readings["matched"][A]["accuracy"]}
