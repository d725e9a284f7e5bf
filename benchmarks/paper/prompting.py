"""The base model, and the base model after demonstrations in its prompt; neither is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.datasets import Dataset
from benchmarks.federated.clock import now
from benchmarks.federated.evaluation import estimate_bias
from benchmarks.paper.texts import A, EvaluationTexts, with_first_texts
from ifed.errors import BadTemplate
from ifed.messages.tasks import TEXT_SLOT
from ifed.messages.texts import LabelledText
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.prefix_cache import PrefixSharing
from ifed.modeling.prompts import PromptTemplate
from ifed.modeling.scoring import ScoringItem, score
from ifed.tensors.values import Float32


def zero_shot(lm: LanguageModel, dataset: Dataset, held_out: Sequence[LabelledText[int]], texts: EvaluationTexts) -> dict[str, Any]:
    """Return accuracy and macro-F1 of the base model, also with the label prior matched to the clients' held-out texts."""
    began, template, test = now(lm), PromptTemplate.of(lm, dataset.template), texts.examples
    scores = _score(lm, dataset, template, test)
    seconds = (now(lm) - began) / len(test)
    prior = estimate_bias(_score(lm, dataset, template, held_out), np.array([example.label for example in held_out]))
    readings = texts.readings(np.array([example.label for example in test]), scores, *prior)
    return with_first_texts(readings, "plain") | {"seconds_a_text": seconds, "readings": readings}


def few_shot(
    lm: LanguageModel,
    dataset: Dataset,
    parts: Sequence[Sequence[LabelledText[int]]],
    texts: EvaluationTexts,
    shots: int,
    seed: int,
) -> dict[str, Any]:
    """Evaluate local in-context learning: each client prompts with demonstrations of its own.

    Test text i goes to client i modulo K alone, whose accuracy is estimated on that share. So the result estimates the mean over clients
    that each read the whole test set, at the cost of one pass over it.

    Returns:
        accuracy and macro-F1 over all answers, and the number of demonstrations in a prompt, mean over the clients.
    """
    test = texts.examples
    scores = np.zeros((len(test), len(dataset.labels)), dtype=np.float32)
    counts, began = [], now(lm)
    for rank, part in enumerate(parts):
        share = range(rank, len(test), len(parts))
        order = np.random.default_rng((seed, rank)).permutation(len(part))
        template, count = few_shot_template(lm, dataset, [part[index] for index in order[:shots]])
        counts.append(count)
        if share:
            scores[share.start :: share.step] = _score(lm, dataset, template, [test[index] for index in share])
    cost = {"shots": float(np.mean(counts)), "seconds_a_text": (now(lm) - began) / len(test)}
    figures = texts.figures(np.array([example.label for example in test]), scores)
    return figures[A] | cost | {"readings": {"served": figures}}


def few_shot_template(
    lm: LanguageModel, dataset: Dataset, demonstrations: Sequence[LabelledText[int]]
) -> tuple[PromptTemplate, int]:
    """Return a template that begins with as many demonstrations as leave room for a text, and their number.

    Demonstrations that contain the text slot are left out.
    """
    usable = [example for example in demonstrations if TEXT_SLOT not in example.text]
    for count in range(len(usable), 0, -1):
        shown = [
            f"{dataset.template.replace(TEXT_SLOT, example.text)} {dataset.labels[example.label]}\n\n" for example in usable[:count]
        ]
        try:
            return PromptTemplate.of(lm, "".join(shown) + dataset.template), count
        except BadTemplate:
            continue  # no room for a text
    return PromptTemplate.of(lm, dataset.template), 0


def _score(lm: LanguageModel, dataset: Dataset, template: PromptTemplate, texts: Sequence[LabelledText[int]]) -> Float32:
    """Return the labels' log-probabilities, (n, C); the prompts' common prefix is run once."""
    labels = PromptTemplate.of(lm, dataset.template).labels(dataset.labels)
    items = [ScoringItem(template.prompt(example.text), labels, None) for example in texts]
    return np.stack(score(lm, items, prefixes=PrefixSharing(lm)))
