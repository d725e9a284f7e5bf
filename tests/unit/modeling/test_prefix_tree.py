"""Rows that begin alike run their prefix once, and score what they score alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ifed.modeling.batching import Row
from ifed.modeling.forward import TOKEN_MULTIPLE
from ifed.modeling.injection import Injection
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.prefix_cache import PrefixSharing
from ifed.modeling.prefix_tree import ancestors, ancestors_of, group_rows, share_prefixes
from ifed.modeling.prompts import PromptTemplate
from ifed.modeling.scoring import ScoringItem, score
from ifed.tensors.regression import LabelHead
from testing.random_models import (
    FAMILY_NAMES,
    HIDDEN,
    LABELS,
    LONG_TEMPLATE,
    PLAIN,
    TEXTS,
    build,
    forward_sizes,
    random_injection,
    template,
)

TEXT = "the film was good and the plot was bad but we liked it a lot because of the acting"
OTHER_ENDINGS = ("Review: {text}\nSentiment:", "Review: {text}\nTopic:", "Review: {text}\nIs it subjective or objective?")


def injection(lm: LanguageModel, seed: int, position: str = "last_token") -> Injection:
    return replace(random_injection(lm, seed=seed), position=position)  # type: ignore[arg-type]  # one of the two positions


def head(labels: int, seed: int) -> LabelHead:
    generator = np.random.default_rng(seed)
    return LabelHead(generator.normal(size=(labels, HIDDEN)).astype(np.float32), generator.normal(size=labels).astype(np.float32))


def tasks(lm: LanguageModel, text: str) -> list[ScoringItem]:
    """Return one text under tasks of every kind: words of one token and of several, heads, both, either position, the base model."""
    templates = [template(lm, ending) for ending in OTHER_ENDINGS]
    templates += [template(lm, LONG_TEMPLATE), PromptTemplate("<|user|>Review: {text}\n<|assistant|>\n", lm.tokenizer, chat=True)]
    items = []
    for number, prompts in enumerate(templates):
        prompt, few, several = prompts.prompt(text), prompts.labels(["positive", "negative"]), prompts.labels(LABELS)
        items += [
            ScoringItem(prompt, few, injection(lm, 20 + number)),
            ScoringItem(prompt, several, injection(lm, 30 + number)),
            ScoringItem(prompt, None, injection(lm, 40 + number), head(4, number)),
            ScoringItem(prompt, several, injection(lm, 50 + number), head(3, number)),
            ScoringItem(prompt, several, injection(lm, 60 + number, "all_tokens")),
            ScoringItem(prompt, several, None),
        ]
    return items


def alone(lm: LanguageModel, items: Sequence[ScoringItem]) -> list[np.ndarray]:
    """Return the scores of each item by itself, with nothing shared and under the mask that transformers derives."""
    return [score(replace(lm, options=PLAIN), [item])[0] for item in items]


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_several_tasks_on_one_text_score_what_each_scores_alone(family: str) -> None:
    lm = build(family)
    items = tasks(lm, TEXT)
    prefixes = PrefixSharing(lm, persistent=True, min_length=16)  # as the service keeps them
    for budget, kept in ((10_000, None), (64, None), (10_000, prefixes)):
        actual = score(lm, items, token_budget=budget, prefixes=kept)
        for one, other in zip(actual, alone(lm, items), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_several_texts_under_several_tasks_do_not_see_each_other() -> None:
    lm = build("gemma3_text")
    items = [item for text in (TEXT, TEXTS[2], TEXTS[7], TEXT + " and more") for item in tasks(lm, text)]
    for one, other in zip(score(lm, items, token_budget=200), alone(lm, items), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_a_text_is_run_once_for_all_tasks_that_leave_its_tokens_alone() -> None:
    lm = build()
    prompts = template(lm)
    prompt, labels = prompts.prompt(TEXT), prompts.labels(["positive", "negative"])
    length = len(prompt.ids)
    cases = [("last_token", length - 1 + 8), ("all_tokens", 8 * length)]
    for position, tokens in cases:
        items = [ScoringItem(prompt, labels, injection(lm, seed, position)) for seed in range(8)]
        with forward_sizes(lm) as sizes:
            score(lm, items, token_budget=10_000)
        assert sizes == [tokens + -tokens % TOKEN_MULTIPLE]


def test_labels_of_several_tokens_run_their_prompt_once() -> None:
    lm = build()
    prompts = template(lm)
    prompt, labels = prompts.prompt(TEXT), prompts.labels(["topic sport", "object of science", "mixed was good"])
    assert len(labels.extensions) == 3
    tokens = len(prompt.ids) - 1 + sum(1 + len(extension) for extension in labels.extensions)
    with forward_sizes(lm) as sizes:
        score(lm, [ScoringItem(prompt, labels, injection(lm, 2, "all_tokens"))], token_budget=10_000)
    assert sizes == [tokens + -tokens % TOKEN_MULTIPLE]


def test_templates_that_differ_after_the_text_share_the_text() -> None:
    lm = build()
    prompts = [template(lm, ending).prompt(TEXT) for ending in OTHER_ENDINGS]
    items = [ScoringItem(prompt, None, injection(lm, seed), head(2, seed)) for seed, prompt in enumerate(prompts)]
    common = len(template(lm, "Review: {text}\n.").prompt(TEXT).ids) - 1
    assert len({prompt.ids[:common] for prompt in prompts}) == 1
    tokens = common + sum(len(prompt.ids) - common for prompt in prompts)
    with forward_sizes(lm) as sizes:
        score(lm, items, token_budget=10_000)
    assert sizes == [tokens + -tokens % TOKEN_MULTIPLE]


def test_different_texts_are_run_as_they_are() -> None:
    lm = build()
    prompts = template(lm)
    rows = [Row.for_last_token(prompts.prompt(text).ids) for text in TEXTS]
    assert all(shared is row for shared, row in zip(share_prefixes(rows, [0] * len(rows)), rows, strict=True))


def test_with_sharing_turned_off_every_task_runs_the_whole_text() -> None:
    lm = build()
    off = replace(lm, options=replace(lm.options, share_prefix=False))
    items = [ScoringItem(template(lm).prompt(TEXT), None, injection(lm, seed), head(2, seed)) for seed in range(3)]
    with forward_sizes(off) as sizes:
        score(off, items, token_budget=10_000)
    assert sum(sizes) >= 3 * len(items[0].prompt.ids)


def test_a_beginning_that_does_not_fit_into_memory_with_all_its_rows_is_run_with_half_of_them() -> None:
    lm = build()
    items = tasks(lm, TEXT)

    def too_much(_module: torch.nn.Module, _arguments: tuple[object, ...], keywords: dict[str, torch.Tensor]) -> None:
        if keywords["input_ids"].numel() > 120:
            raise torch.OutOfMemoryError

    hook = lm.model.base_model.register_forward_pre_hook(too_much, with_kwargs=True)
    actual = score(lm, items, token_budget=10_000)
    hook.remove()
    for one, other in zip(actual, alone(lm, items), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


row_tokens = st.lists(st.integers(1, 2), min_size=1, max_size=12)


@given(st.lists(st.tuples(row_tokens, st.integers(0, 11), st.integers(0, 1)), min_size=1, max_size=12), st.integers(1, 60))
def test_a_tree_holds_every_row_and_no_more_tokens(drawn: list[tuple[list[int], int, int]], budget: int) -> None:
    rows = [Row(tuple(ids), (min(position, len(ids) - 1),)) for ids, position, _ in drawn]
    shared = share_prefixes(rows, [key for *_, key in drawn])
    for row, original in zip(shared, rows, strict=True):
        assert sum((part.ids for part in [*ancestors(row), row]), ()) == original.ids
        assert len(row.ids) - row.prompt_end == len(original.ids) - original.prompt_end
    assert sum(len(row.ids) for row in [*shared, *(row for row, _ in ancestors_of(shared))]) <= sum(len(row.ids) for row in rows)
    groups = group_rows(shared, budget, "packed")
    assert sorted(index for group in groups for index in group) == list(range(len(rows)))
    for group in groups:
        members = [shared[index] for index in group]
        prefixes = [row for row, _ in ancestors_of(members)]
        tokens = sum(len(row.ids) for row in [*prefixes, *members])
        assert len(group) == 1 or tokens <= max(budget, 2 * sum(len(row.ids) for row in prefixes))


def test_a_thousand_prefixes_inside_each_other_are_no_recursion() -> None:
    rows = [Row.for_last_token((1,) * length) for length in range(2, 1200)]
    shared = share_prefixes(rows, [0] * len(rows))
    deepest = [*ancestors(shared[-1]), shared[-1]]
    assert sum(len(row.ids) for row in deepest) == 1199
    assert 1 < len(deepest) < 50, "a prefix is shared where that saves a quarter, so there are few of them"
