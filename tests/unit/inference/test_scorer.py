"""A text scored among texts of other tasks gets what it gets alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
import torch

from ifed.errors import BadTemplate, EmptyText, TextTooLong
from ifed.messages.bodies import AdapterBody
from ifed.messages.rounds import AdapterMeta
from ifed.messages.tasks import Layout
from ifed.modeling.prompts import PromptTemplate
from ifed.modeling.scoring import ScoringItem
from services.inference.demonstrations import Demonstration
from services.inference.model import Item, LoadedAdapter, Scorer
from services.inference.service import Prepared
from tests.unit.modeling.builders import HIDDEN, TEXTS, build, random_coefficients, random_context


def scorer_of(family: str = "llama", dtype: torch.dtype = torch.float32, **limits: int) -> tuple[Scorer, list[LoadedAdapter]]:
    """A random model and three tasks on it: other layers, other labels, other tensors."""
    lm = build(family, dtype=dtype)
    scorer = Scorer(lm, **limits)
    kinds = ([0, 1, 2], ["good", "bad"]), ([1, 2], ["positive", "negative", "mixed topic"]), ([2], ["sport", "science"])
    loaded = []
    for seed, (layers, labels) in enumerate(kinds):
        meta = AdapterMeta(
            task=f"task-{seed}",
            version=1,
            labels=labels,
            template="Review: {text}\nSentiment:",
            identity=lm.identity,
            layout=Layout(layers=layers, hidden_size=HIDDEN, groups=4),
            created_at=datetime.now(UTC),
        )
        tensors = random_context(len(layers), seed=seed), random_coefficients(len(layers), 4, seed=seed)
        loaded.append(scorer.load_adapter(AdapterBody(*tensors, meta)))
    return scorer, [*loaded, scorer.bare(loaded[0])]


def prepared(scorer: Scorer, loaded: LoadedAdapter, text: str) -> Prepared[Item]:
    found = scorer.prepare(loaded, text, truncate=True)
    assert isinstance(found, Prepared)
    return found


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_a_text_among_other_tasks_gets_what_it_gets_alone(family: str) -> None:
    scorer, tasks = scorer_of(family)
    items = [prepared(scorer, tasks[n % 4], text).item for n, text in enumerate(text for text in TEXTS if text)]
    together = scorer.score(items)
    for item, found in zip(items, together, strict=True):
        (alone,) = scorer.score([item])
        np.testing.assert_allclose(found, alone, rtol=0, atol=2e-6)
        assert found.argmax() == alone.argmax()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_what_is_injected_into_other_rows_changes_no_bit(family: str, dtype: torch.dtype) -> None:
    """In the same places of the same batch, with the same labels: what stands in the other rows decides nothing."""
    scorer, (task, other, *_) = scorer_of(family, dtype)
    tasks = [task, replace(task, injection=other.injection), scorer.bare(task), task]
    items = [prepared(scorer, task, text).item for task, text in zip(tasks, filter(None, TEXTS), strict=False)]
    mixed = scorer.score(items)
    for place, task in enumerate(tasks):
        uniform = scorer.score([replace(item, injection=task.injection) for item in items])
        np.testing.assert_array_equal(mixed[place], uniform[place])


def test_blank_and_long_texts_are_refused_one_by_one() -> None:
    scorer, (task, *_) = scorer_of(max_tokens=40)
    assert isinstance(scorer.prepare(task, " \n", truncate=True), EmptyText)
    long = "good film " * 100
    assert isinstance(scorer.prepare(task, long, truncate=False), TextTooLong)
    cut = prepared(scorer, task, long)
    assert (cut.truncated, cut.tokens) == (True, 40)


def test_few_shot_prompts_show_the_demonstrations_to_the_bare_model() -> None:
    scorer, (task, *_) = scorer_of()
    shown = scorer.few_shot(task, [Demonstration("the film was good", "good"), Demonstration("bad", "bad")])
    assert shown.injection is None
    assert shown.template.template == (
        "Review: the film was good\nSentiment: good\n\nReview: bad\nSentiment: bad\n\nReview: {text}\nSentiment:"
    )
    assert prepared(scorer, shown, "a lot").tokens > prepared(scorer, task, "a lot").tokens
    with pytest.raises(BadTemplate):
        scorer.few_shot(task, [Demonstration("good film " * 100, "good")])


def test_few_shot_in_a_chat_shows_demonstrations_as_the_chat_template_has_them() -> None:
    scorer, (task, *_) = scorer_of()
    tokenizer = task.template.tokenizer
    chat = replace(task, template=PromptTemplate("<|user|>Review: {text}\n<|assistant|>\n", tokenizer, chat=True))
    shown = scorer.few_shot(chat, [Demonstration("fine", "good")])
    assert shown.template.template == ("<|user|>Review: fine\n<|assistant|>\ngood\n\n<|user|>Review: {text}\n<|assistant|>\n")
    assert prepared(scorer, shown, "a lot").tokens > prepared(scorer, chat, "a lot").tokens


def test_labels_of_several_tokens_count_every_row_they_need() -> None:
    scorer, tasks = scorer_of()
    one, several = prepared(scorer, tasks[0], "bad"), prepared(scorer, tasks[1], "bad")
    assert scorer.tokens(several.item) > scorer.tokens(one.item) == one.tokens  # type: ignore[arg-type]


def test_what_a_few_shot_prompt_begins_with_is_read_once_for_all_requests() -> None:
    scorer, tasks = scorer_of()
    shown = scorer.few_shot(tasks[0], [Demonstration(text, "good") for text in TEXTS if text])
    read: list[int] = []
    hook = scorer._model.model.base_model.register_forward_pre_hook(
        lambda _module, _arguments, keywords: read.append(keywords["input_ids"].numel()), with_kwargs=True
    )
    scores = [scorer.score([prepared(scorer, shown, text).item])[0] for text in ("the plot", "the film", "the plot")]
    hook.remove()
    prefix, *texts = read
    assert prefix > 50
    assert len(texts) == 3
    assert max(texts) < 20
    assert np.array_equal(scores[0], scores[2])
    assert not np.array_equal(scores[0], scores[1])


def test_what_a_prompt_begins_with_does_not_count_in_the_budget_once_it_is_kept() -> None:
    scorer, tasks = scorer_of()
    shown = scorer.few_shot(tasks[0], [Demonstration(text, "good") for text in TEXTS if text])
    item = prepared(scorer, shown, "the plot")
    assert isinstance(item.item, ScoringItem)
    assert scorer.tokens(item.item) == item.tokens - item.item.prompt.prefix_length < 20


def test_lanes_share_the_weights_and_what_is_kept() -> None:
    scorer, tasks = scorer_of(lanes=2)
    shown = scorer.few_shot(tasks[0], [Demonstration(text, "good") for text in TEXTS if text])
    item = prepared(scorer, shown, "the plot").item
    scorer.warm_up()
    one, other = scorer.lanes
    assert np.array_equal(one([item])[0], other([item])[0])
    assert (scorer.prefixes.misses, scorer.prefixes.hits) == (1, 1)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            mixed = [prepared(scorer, task, "the film").item for task in tasks]
            expected = scorer.score(mixed)
            for found in [running.result() for running in [pool.submit(lane, mixed) for lane in (one, other)]]:
                np.testing.assert_array_equal(np.concatenate(found), np.concatenate(expected))


def test_warming_up_runs_every_lane_with_one_text_and_with_several() -> None:
    scorer, _ = scorer_of(lanes=2)
    read: list[list[int]] = [[], []]
    for seen, (model, _) in zip(read, scorer._ways, strict=True):
        model.model.base_model.register_forward_pre_hook(
            lambda _module, _arguments, keywords, seen=seen: seen.append(keywords["input_ids"].numel()), with_kwargs=True
        )
    scorer.warm_up()
    assert [len(seen) for seen in read] == [3, 3]
    assert read[0] == sorted(set(read[0])), "other sizes, so that nothing is compiled for one size alone"
    assert scorer.prefixes.nbytes == 0
