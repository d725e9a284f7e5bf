"""Label probabilities of prompts, and confusion counts on labelled examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ifed.messages.texts import LabelledText
from ifed.modeling.batching import Row
from ifed.modeling.forward import ActivationCache, run_rows
from ifed.modeling.injection import Injection
from ifed.modeling.labels import LabelTokens
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.logits import label_scores
from ifed.modeling.prefix_cache import PrefixSharing
from ifed.modeling.prompts import Prompt, PromptTemplate
from ifed.tensors.values import Float32, Int64


@dataclass(frozen=True, slots=True, eq=False)
class ScoringItem:
    """One prompt to score under one task.

    Attributes:
        prompt: the text in its template, as tokens.
        labels: the labels to choose from.
        injection: None scores the base model. Items of one task should share the object.
    """

    prompt: Prompt
    labels: LabelTokens
    injection: Injection | None


def score(
    lm: LanguageModel, items: Sequence[ScoringItem], *, token_budget: int | None = None, prefixes: PrefixSharing | None = None
) -> list[Float32]:
    """Return the log-probabilities of each item's labels, normalised over its labels; items of different tasks share batches.

    The probability of a label of several tokens is the product of its tokens'.

    Args:
        token_budget: tokens of one forward pass; the model's own by default.
        prefixes: keeps the KV caches of template prefixes from call to call; by default they live for this call.

    Returns:
        Per item float32, (C,), in the order of its labels.

    Raises:
        LayoutMismatch: an injection does not fit the model.
    """
    rows_by_item = [scoring_rows(item.prompt, item.labels) for item in items]
    rows = [row for item_rows in rows_by_item for row in item_rows]
    injections = [item.injection for item, item_rows in zip(items, rows_by_item, strict=True) for _ in item_rows]
    hidden = iter(run_rows(lm, rows, injections, token_budget=token_budget, prefixes=prefixes))
    states = [torch.cat([next(hidden) for _ in item_rows]) for item_rows in rows_by_item]
    return _label_scores(lm, [item.labels for item in items], states)


def evaluate(
    lm: LanguageModel,
    template: PromptTemplate,
    labels: LabelTokens,
    examples: Sequence[LabelledText[int]],
    injection: Injection | None,
    *,
    token_budget: int | None = None,
) -> Int64:
    """Return the confusion counts of an injection, or of the base model, on labelled examples.

    Returns:
        int64, (C, C), true labels in rows, predicted ones in columns.
    """
    prompts = [template.prompt(example.text) for example in examples]
    scores = score(lm, [ScoringItem(prompt, labels, injection) for prompt in prompts], token_budget=token_budget)
    return confusion_counts([example.label for example in examples], scores, len(labels.names))


class HeldOut:
    """Held-out examples that are scored repeatedly as the coefficients change; the activations of the lower layers are cached.

    Args:
        first_layer: the lowest layer that will be injected into.
        cache_bytes: the largest size of the cache.
        token_budget: tokens of one forward pass; the model's own by default.
    """

    def __init__(
        self,
        lm: LanguageModel,
        template: PromptTemplate,
        labels: LabelTokens,
        examples: Sequence[LabelledText[int]],
        *,
        first_layer: int,
        cache_bytes: int,
        token_budget: int | None = None,
    ) -> None:
        self._lm, self._labels, self._token_budget = lm, labels, token_budget
        self._true_labels = [example.label for example in examples]
        self._rows = [row for example in examples for row in scoring_rows(template.prompt(example.text), labels)]
        self._activations = ActivationCache(lm, first_layer, self._rows, max_bytes=cache_bytes, token_budget=token_budget)

    def confusion(self, injection: Injection) -> Int64:
        """Return confusion counts as `evaluate` does; `injection` must not reach below the first layer."""
        return self.measure(injection)[0]

    def measure(self, injection: Injection) -> tuple[Int64, Float32 | None]:
        """Return the confusion counts and the mean probability of each label, float32, (C,); None without examples."""
        scores = self.scores(injection)
        counts = confusion_counts(self._true_labels, list(scores), len(self._labels.names))
        if not self._true_labels:
            return counts, None
        return counts, np.asarray(np.exp(scores, dtype=np.float64).mean(axis=0), dtype=np.float32)

    def scores(self, injection: Injection) -> Float32:
        """Return the log-probabilities of the labels of each example, normalised over the labels: float32, (n, C)."""
        if not self._true_labels:
            return np.zeros((0, len(self._labels.names)), dtype=np.float32)
        injections = [injection] * len(self._rows)
        hidden = run_rows(self._lm, self._rows, injections, token_budget=self._token_budget, activations=self._activations)
        states = torch.cat(hidden).unflatten(0, (len(self._true_labels), -1))
        return np.stack(_label_scores(self._lm, [self._labels] * len(self._true_labels), list(states)))


def scoring_rows(prompt: Prompt, labels: LabelTokens) -> list[Row]:
    """Return the rows that score a prompt: the prompt followed by each of the fewest label prefixes that reach every inner node."""
    last = len(prompt.ids) - 1
    return [
        Row(prompt.ids + extension, tuple(last + len(node) for node in nodes), prompt.prefix_length)
        for extension, nodes in zip(labels.extensions, labels.nodes_by_extension, strict=True)
    ]


def confusion_counts(true_labels: Sequence[int], scores: Sequence[Float32], classes: int) -> Int64:
    """Return how often each (true, most probable) pair of labels occurs; of equal probabilities the first label counts.

    Returns:
        int64, (classes, classes), true labels in rows, predicted ones in columns.
    """
    counts = np.zeros((classes, classes), dtype=np.int64)
    for true_label, row in zip(true_labels, scores, strict=True):
        counts[true_label, int(np.argmax(row))] += 1
    return counts


def _label_scores(lm: LanguageModel, labels: Sequence[LabelTokens], states: Sequence[Tensor]) -> list[Float32]:
    """Return the scores of each item, with one product with the head for each distinct set of labels."""
    scores_by_item: dict[int, Float32] = {}
    for label_set in dict.fromkeys(labels):
        indices = [index for index, other in enumerate(labels) if other == label_set]
        with torch.inference_mode():
            scores = label_scores(lm, label_set, torch.stack([states[index] for index in indices])).cpu().numpy()
        scores_by_item.update(zip(indices, scores, strict=True))
    return [scores_by_item[index] for index in range(len(labels))]
