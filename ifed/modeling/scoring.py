"""Prompts into label probabilities, and labelled examples into confusion counts. Knows no gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ifed.modeling.batching import Row
from ifed.modeling.forward import ActivationCache, wanted_hidden
from ifed.modeling.injection import Injection
from ifed.modeling.labels import LabelTokens
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.logits import label_scores
from ifed.modeling.prefix_cache import Prefixes
from ifed.modeling.prompts import Example, Prompt, PromptTemplate
from ifed.tensors.values import Float32, Int64


@dataclass(frozen=True, slots=True, eq=False)
class ScoringItem:
    """One prompt to score under one task.

    Attributes:
        injection: None scores the bare model. Items of one task should share the object.
    """

    prompt: Prompt
    labels: LabelTokens
    injection: Injection | None


def score(
    lm: LanguageModel, items: Sequence[ScoringItem], *, token_budget: int | None = None, prefixes: Prefixes | None = None
) -> list[Float32]:
    """Log-probabilities of each item's labels, normalised over its labels; items of different tasks share batches.

    A label of several tokens counts with the product of its tokens' probabilities.

    Args:
        token_budget: tokens of one forward pass; the model's own choice when not set.
        prefixes: where what the templates begin with is kept from call to call; within this call alone when not set.

    Returns:
        per item float32, (C,), in the order of its labels.

    Raises:
        LayoutMismatch: an injection that does not fit the model.
    """
    rows = [rows_of(item.prompt, item.labels) for item in items]
    flat = [row for group in rows for row in group]
    injections = [item.injection for item, group in zip(items, rows, strict=True) for _ in group]
    hidden = iter(wanted_hidden(lm, flat, injections, token_budget=token_budget, prefixes=prefixes))
    states = [torch.cat([next(hidden) for _ in group]) for group in rows]
    return _scores(lm, [item.labels for item in items], states)


def evaluate(
    lm: LanguageModel,
    template: PromptTemplate,
    labels: LabelTokens,
    examples: Sequence[Example],
    injection: Injection | None,
    *,
    token_budget: int | None = None,
) -> Int64:
    """Confusion counts of an injection, or of the bare model, on labelled examples.

    Returns:
        int64, (C, C): rows are the true labels, columns the predicted ones.
    """
    prompts = [template.prompt(example.text) for example in examples]
    scores = score(lm, [ScoringItem(prompt, labels, injection) for prompt in prompts], token_budget=token_budget)
    return confusion([example.label for example in examples], scores, len(labels.names))


class HeldOut:
    """Examples kept aside, to be scored again and again as the coefficients change; what the lower layers give for them is kept."""

    def __init__(
        self,
        lm: LanguageModel,
        template: PromptTemplate,
        labels: LabelTokens,
        examples: Sequence[Example],
        *,
        first_layer: int,
        cache_bytes: int,
        token_budget: int | None = None,
    ) -> None:
        self._lm, self._labels, self._token_budget = lm, labels, token_budget
        self._truths = [example.label for example in examples]
        self._rows = [row for example in examples for row in rows_of(template.prompt(example.text), labels)]
        self._lower = ActivationCache(lm, first_layer, self._rows, limit=cache_bytes, token_budget=token_budget)

    def confusion(self, injection: Injection) -> Int64:
        """Confusion counts as `evaluate` gives them; `injection` must not reach below the first layer."""
        return self.measure(injection)[0]

    def measure(self, injection: Injection) -> tuple[Int64, Float32 | None]:
        """Confusion counts, and the mean probability of each label, float32, (C,); None without examples."""
        scores = self.scores(injection)
        counts = confusion(self._truths, list(scores), len(self._labels.names))
        if not self._truths:
            return counts, None
        return counts, np.asarray(np.exp(scores, dtype=np.float64).mean(axis=0), dtype=np.float32)

    def scores(self, injection: Injection) -> Float32:
        """Log-probabilities of the labels of each example, normalised over the labels: float32, (n, C)."""
        if not self._truths:
            return np.zeros((0, len(self._labels.names)), dtype=np.float32)
        hidden = wanted_hidden(
            self._lm, self._rows, [injection] * len(self._rows), token_budget=self._token_budget, lower=self._lower
        )
        states = torch.cat(hidden).unflatten(0, (len(self._truths), -1))
        return np.stack(_scores(self._lm, [self._labels] * len(self._truths), list(states)))


def rows_of(prompt: Prompt, labels: LabelTokens) -> list[Row]:
    """What must be run to score a prompt: it, followed by each of the fewest label prefixes that reach every inner node."""
    last = len(prompt.ids) - 1
    return [
        Row(prompt.ids + prefix, tuple(last + len(node) for node in nodes), prompt.shared)
        for prefix, nodes in zip(labels.rows, labels.nodes_of_rows, strict=True)
    ]


def confusion(truths: Sequence[int], scores: Sequence[Float32], classes: int) -> Int64:
    """Counts of (true, most probable) label; of equal probabilities the first counts."""
    counts = np.zeros((classes, classes), dtype=np.int64)
    for truth, row in zip(truths, scores, strict=True):
        counts[truth, int(np.argmax(row))] += 1
    return counts


def _scores(lm: LanguageModel, labels: Sequence[LabelTokens], states: Sequence[Tensor]) -> list[Float32]:
    """One head product per distinct label set, whatever the number of items."""
    found: dict[int, Float32] = {}
    for label_set in dict.fromkeys(labels):
        mine = [index for index, other in enumerate(labels) if other == label_set]
        with torch.inference_mode():
            scores = label_scores(lm, label_set, torch.stack([states[index] for index in mine])).cpu().numpy()
        found.update(zip(mine, scores, strict=True))
    return [found[index] for index in range(len(labels))]
