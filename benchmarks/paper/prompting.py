"""The bare model, and the bare model after demonstrations in its prompt. Trains nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.datasets import Source
from benchmarks.federated.clock import now
from benchmarks.federated.evaluation import bias_from, counted, three_ways
from benchmarks.paper.calibration import as_served
from ifed.errors import BadTemplate
from ifed.messages.tasks import TEXT_SLOT
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.prefix_cache import PrefixSharing
from ifed.modeling.prompts import Example, PromptTemplate
from ifed.modeling.scoring import ScoringItem, score
from ifed.tensors.values import Float32


def zero_shot(lm: LanguageModel, source: Source, held: Sequence[Example], test: Sequence[Example]) -> dict[str, Any]:
    """Accuracy and macro-F1 of the bare model; also with the label prior matched to the clients' held-out texts."""
    began, template = now(lm), PromptTemplate.of(lm, source.template)
    scores = _scores(lm, source, template, test)
    seconds = (now(lm) - began) / len(test)
    told = bias_from(_scores(lm, source, template, held), np.array([example.label for example in held]))
    both = three_ways(np.array([example.label for example in test]), scores, *told)
    return as_served(both, prior=False) | {"seconds_a_text": seconds}


def few_shot(
    lm: LanguageModel, source: Source, parts: Sequence[Sequence[Example]], test: Sequence[Example], shots: int, seed: int
) -> dict[str, Any]:
    """Local in-context learning: each client prompts with demonstrations of its own.

    Text i of the test set is asked of client i modulo K alone, whose answers on its share estimate its accuracy: so the result
    estimates the mean over the clients, each on the whole test set, at the cost of one pass over it.

    Returns:
        accuracy and macro-F1 over all answers, and how many demonstrations the prompts hold, mean over the clients.
    """
    scores = np.zeros((len(test), len(source.labels)), dtype=np.float32)
    held, began = [], now(lm)
    for rank, part in enumerate(parts):
        mine = range(rank, len(test), len(parts))
        order = np.random.default_rng((seed, rank)).permutation(len(part))
        template, count = prompt_of(lm, source, [part[index] for index in order[:shots]])
        held.append(count)
        if mine:
            scores[mine.start :: mine.step] = _scores(lm, source, template, [test[index] for index in mine])
    found = {"shots": float(np.mean(held)), "seconds_a_text": (now(lm) - began) / len(test)}
    return _row(source, test, scores) | found


def prompt_of(lm: LanguageModel, source: Source, demonstrations: Sequence[Example]) -> tuple[PromptTemplate, int]:
    """A template behind as many of the demonstrations as leave room for a text, and how many they are."""
    usable = [one for one in demonstrations if TEXT_SLOT not in one.text]
    for count in range(len(usable), 0, -1):
        before = [f"{source.template.replace(TEXT_SLOT, one.text)} {source.labels[one.label]}\n\n" for one in usable[:count]]
        try:
            return PromptTemplate.of(lm, "".join(before) + source.template), count
        except BadTemplate:
            continue  # no room for a text: one demonstration less
    return PromptTemplate.of(lm, source.template), 0


def _scores(lm: LanguageModel, source: Source, template: PromptTemplate, texts: Sequence[Example]) -> Float32:
    """What texts have in common at their beginning is run once."""
    labels = PromptTemplate.of(lm, source.template).labels(source.labels)
    items = [ScoringItem(template.prompt(one.text), labels, None) for one in texts]
    return np.stack(score(lm, items, prefixes=PrefixSharing(lm)))


def _row(source: Source, test: Sequence[Example], scores: Float32) -> dict[str, Any]:
    found = counted(np.array([example.label for example in test]), scores, len(source.labels))
    return {"accuracy": found.accuracy, "macro_f1": found.macro_f1}
