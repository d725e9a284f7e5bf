"""Label probabilities of prompts, and confusion counts on labelled examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from ifed.modeling.prompt_cache import PromptCache
from ifed.modeling.prompts import Prompt, PromptTemplate
from ifed.tensors.confidence import ConfidenceBins
from ifed.tensors.regression import LabelHead, log_softmax
from ifed.tensors.values import Float32, Int64


@dataclass(frozen=True, slots=True, eq=False)
class ScoringItem:
    """One prompt to score under one task.

    Attributes:
        prompt: the text in its template, as tokens.
        labels: the label words to score; None for a task whose head alone is read.
        injection: None scores the base model. Items of one task should share the object.
        head: the label head to read; None for label words. With both, their log-probabilities are averaged. Items of one task should share
            the object.
    """

    prompt: Prompt
    labels: LabelTokens | None
    injection: Injection | None
    head: LabelHead | None = None


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
    with_words = [index for index, item in enumerate(items) if item.labels is not None]
    word_scores = _label_scores(
        lm, [label_set for item in items if (label_set := item.labels)], [states[index] for index in with_words]
    )
    by_words = dict(zip(with_words, word_scores, strict=True))
    by_head = _head_scores([item.head for item in items], states)
    return [_combined(by_words.get(index), by_head.get(index)) for index in range(len(items))]


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


@dataclass(frozen=True, slots=True, eq=False)
class Measurement:
    """The evaluation of one version on held-out examples.

    Attributes:
        confusion: int64, (C, C), true labels in rows, predicted ones in columns.
        label_probabilities: the mean probability of each label, float32, (C,); None without examples.
        log_likelihood: the sum of the log-probabilities of the true labels.
        confidence: the examples by the probability of their most probable label; None without examples.
    """

    confusion: Int64
    label_probabilities: Float32 | None
    log_likelihood: float
    confidence: ConfidenceBins | None = None

    @classmethod
    def of(cls, true_labels: Sequence[int], scores: Float32) -> Measurement:
        """Return the measurement of log-probabilities, (n, C)."""
        confusion = confusion_counts(true_labels, list(scores), scores.shape[1])
        if not len(scores):
            return cls(confusion, None, 0.0)
        means = np.asarray(np.exp(scores, dtype=np.float64).mean(axis=0), dtype=np.float32)
        of_truth = scores[np.arange(len(scores)), np.asarray(true_labels)]
        return cls(confusion, means, float(of_truth.sum(dtype=np.float64)), ConfidenceBins.of(true_labels, scores))


class HeldOut:
    """Held-out examples that are scored repeatedly as the coefficients change; what no coefficient changes is cached.

    Args:
        labels: the label words; None for a task whose head alone is read.
        classes: the number of labels, C.
        cache: from rows to their cache: of the lower layers, or of the prompts for an injection at the last token.
        token_budget: tokens of one forward pass; the model's own by default.
    """

    def __init__(
        self,
        lm: LanguageModel,
        template: PromptTemplate,
        labels: LabelTokens | None,
        examples: Sequence[LabelledText[int]],
        *,
        classes: int,
        cache: Callable[[Sequence[Row]], ActivationCache | PromptCache],
        token_budget: int | None = None,
    ) -> None:
        self._lm, self._labels, self._classes, self._token_budget = lm, labels, classes, token_budget
        self.true_labels = [example.label for example in examples]
        self._rows = [row for example in examples for row in scoring_rows(template.prompt(example.text), labels)]
        self._activations = cache(self._rows)

    def scores(self, injection: Injection | None, *, words: bool = True, head: LabelHead | None = None) -> Float32:
        """Return the log-probabilities of the labels of each example, normalised over the labels: float32, (n, C).

        Args:
            injection: must not reach below the first layer of the cache.
            words: whether the label words are read.
            head: the label head to read; with the words, the log-probabilities of the two are averaged.
        """
        if not self.true_labels:
            return np.zeros((0, self._classes), dtype=np.float32)
        states = self._states(injection)
        count = len(self.true_labels)
        by_words: Sequence[Float32 | None] = [None] * count
        if words and self._labels is not None:
            by_words = _label_scores(self._lm, [self._labels] * count, list(states))
        by_head = _head_scores([head] * count, list(states))
        return np.stack([_combined(by_words[index], by_head.get(index)) for index in range(count)])

    def final_states(self, injection: Injection | None) -> Float32:
        """Return the final hidden state at the last token of each prompt, float32, (n, d)."""
        if not self.true_labels:
            return np.zeros((0, self._lm.hidden_size), dtype=np.float32)
        return self._states(injection)[:, 0].float().cpu().numpy()

    def _states(self, injection: Injection | None) -> Tensor:
        injections = [injection] * len(self._rows)
        hidden = run_rows(self._lm, self._rows, injections, token_budget=self._token_budget, activations=self._activations)
        states: Tensor = torch.cat(hidden).unflatten(0, (len(self.true_labels), -1))
        return states


def scoring_rows(prompt: Prompt, labels: LabelTokens | None) -> list[Row]:
    """Return the rows that score a prompt: the prompt followed by each of the fewest label prefixes that reach every inner node.

    The first output position of the first row is the last token of the prompt, which a label head reads; without label words it is the only one.
    """
    last = len(prompt.ids) - 1
    if labels is None:
        return [Row(prompt.ids, (last,), prompt.prefix_length)]
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
    items_by_labels: dict[LabelTokens, list[int]] = {}
    for index, label_set in enumerate(labels):
        items_by_labels.setdefault(label_set, []).append(index)
    for label_set, indices in items_by_labels.items():
        with torch.inference_mode():
            scores = label_scores(lm, label_set, torch.stack([states[index] for index in indices])).cpu().numpy()
        scores_by_item.update(zip(indices, scores, strict=True))
    return [scores_by_item[index] for index in range(len(labels))]


def _head_scores(heads: Sequence[LabelHead | None], states: Sequence[Tensor]) -> dict[int, Float32]:
    """Return the scores of each item that has a head, by index: the rows of one head in one product, from the first state of each item."""
    items_by_head: dict[LabelHead, list[int]] = {}
    for index, head in enumerate(heads):
        if head is not None:
            items_by_head.setdefault(head, []).append(index)
    if not items_by_head:
        return {}
    first_states = torch.stack([item_states[0] for item_states in states]).float().cpu().numpy()
    scores: dict[int, Float32] = {}
    for head, indices in items_by_head.items():
        scores.update(zip(indices, head.log_probabilities(first_states[indices]), strict=True))
    return scores


def _combined(by_words: Float32 | None, by_head: Float32 | None) -> Float32:
    """Return the scores of the words, of the head, or of both: the mean of their log-probabilities, normalised again."""
    if by_words is None or by_head is None:
        scores = by_head if by_words is None else by_words
        assert scores is not None, "an item has label words, a head, or both"
        return scores
    return np.asarray(log_softmax((by_words.astype(np.float64) + by_head) / 2), dtype=np.float32)
