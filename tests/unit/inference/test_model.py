"""A text has the same scores in a batch with texts of other tasks as on its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
import torch

from ifed.errors import BadTemplate, EmptyText, TextTooLong, UnknownModel
from ifed.messages.bodies import AdapterBody
from ifed.messages.rounds import AdapterMeta
from ifed.messages.tasks import Layout
from ifed.messages.texts import LabelledText
from ifed.modeling.prompts import Prompt, PromptTemplate
from services.inference.engine import Size, pass_tokens
from services.inference.model import LoadedAdapter, PreparedText, Scorer
from testing.random_models import HIDDEN, TEXTS, build, build_fresh, forward_sizes, random_coefficients, random_context


def scorer_of(family: str = "llama", dtype: torch.dtype = torch.float32, **limits: int) -> tuple[Scorer, list[LoadedAdapter]]:
    """Return a random model with three tasks of different layers, labels and tensors, and the first task's base model."""
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
    return scorer, [*loaded, scorer.base(loaded[0])]


def prepared(scorer: Scorer, adapter: LoadedAdapter, text: str) -> PreparedText:
    prepared_text = scorer.prepare(adapter, text, truncate=True)
    assert isinstance(prepared_text, PreparedText)
    return prepared_text


def few_shot(scorer: Scorer, adapter: LoadedAdapter) -> LoadedAdapter:
    return scorer.few_shot(adapter, [LabelledText(text, "good") for text in TEXTS if text])


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_a_text_scores_the_same_among_texts_of_other_tasks(family: str) -> None:
    scorer, tasks = scorer_of(family)
    items = [prepared(scorer, tasks[n % 4], text).item for n, text in enumerate(text for text in TEXTS if text)]
    for item, together in zip(items, scorer.score(items), strict=True):
        (alone,) = scorer.score([item])
        np.testing.assert_allclose(together, alone, rtol=0, atol=2e-6)
        assert together.argmax() == alone.argmax()


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("llama", torch.float32), ("llama", torch.bfloat16), ("gemma3_text", torch.float32), ("gpt2", torch.float32)],
)
def test_the_injections_of_other_rows_change_no_bit(family: str, dtype: torch.dtype) -> None:
    """Batches of the same texts in the same order, with the same labels, differ only in the injections of other rows."""
    scorer, (task, other, *_) = scorer_of(family, dtype)
    adapters = [task, replace(task, injection=other.injection), scorer.base(task), task]
    items = [prepared(scorer, adapter, text).item for adapter, text in zip(adapters, filter(None, TEXTS), strict=False)]
    mixed = scorer.score(items)
    for row, adapter in enumerate(adapters):
        uniform = scorer.score([replace(item, injection=adapter.injection) for item in items])
        np.testing.assert_array_equal(mixed[row], uniform[row])


def test_blank_and_long_texts_are_refused_one_by_one() -> None:
    scorer, (task, *_) = scorer_of(max_tokens=40)
    assert isinstance(scorer.prepare(task, " \n", truncate=True), EmptyText)
    long = "good film " * 100
    assert isinstance(scorer.prepare(task, long, truncate=False), TextTooLong)
    truncated = prepared(scorer, task, long)
    assert (truncated.truncated, truncated.tokens) == (True, 40)


def test_few_shot_prompts_show_the_demonstrations_to_the_base_model() -> None:
    scorer, (task, *_) = scorer_of()
    shots = scorer.few_shot(task, [LabelledText("the film was good", "good"), LabelledText("bad", "bad")])
    assert shots.injection is None
    assert shots.template.template == (
        "Review: the film was good\nSentiment: good\n\nReview: bad\nSentiment: bad\n\nReview: {text}\nSentiment:"
    )
    assert prepared(scorer, shots, "a lot").tokens > prepared(scorer, task, "a lot").tokens
    with pytest.raises(BadTemplate):
        scorer.few_shot(task, [LabelledText("good film " * 100, "good")])


def test_few_shot_prompts_keep_the_chat_template_around_each_demonstration() -> None:
    scorer, (task, *_) = scorer_of()
    tokenizer = task.template.tokenizer
    chat = replace(task, template=PromptTemplate("<|user|>Review: {text}\n<|assistant|>\n", tokenizer, chat=True))
    shots = scorer.few_shot(chat, [LabelledText("fine", "good")])
    assert shots.template.template == ("<|user|>Review: fine\n<|assistant|>\ngood\n\n<|user|>Review: {text}\n<|assistant|>\n")
    assert prepared(scorer, shots, "a lot").tokens > prepared(scorer, chat, "a lot").tokens


def test_every_row_of_a_label_of_several_tokens_counts() -> None:
    scorer, tasks = scorer_of()
    single_row, several_rows = prepared(scorer, tasks[0], "bad"), prepared(scorer, tasks[1], "bad")
    assert scorer.tokens(several_rows.item) > scorer.tokens(single_row.item) == single_row.tokens


def test_the_prefix_of_a_few_shot_prompt_is_run_once_for_all_requests() -> None:
    scorer, tasks = scorer_of()
    shots = few_shot(scorer, tasks[0])
    with forward_sizes(scorer._model) as passes:
        scores = [scorer.score([prepared(scorer, shots, text).item])[0] for text in ("the plot", "the film", "the plot")]
    prefix, *texts = passes
    assert prefix > 50
    assert len(texts) == 3
    assert max(texts) < 20
    assert np.array_equal(scores[0], scores[2])
    assert not np.array_equal(scores[0], scores[1])


def test_a_cached_prefix_does_not_count_in_the_token_budget() -> None:
    scorer, tasks = scorer_of()
    text = prepared(scorer, few_shot(scorer, tasks[0]), "the plot")
    assert scorer.tokens(text.item) == text.tokens - text.item.prompt.prefix_length < 20


def test_replicas_share_the_weights_and_the_prefix_cache() -> None:
    scorer, tasks = scorer_of(replicas=2)
    item = prepared(scorer, few_shot(scorer, tasks[0]), "the plot").item
    scorer.warm_up()
    first, second = scorer.replicas
    assert np.array_equal(first([item])[0], second([item])[0])
    assert (scorer.prefixes.misses, scorer.prefixes.hits) == (1, 1)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            mixed = [prepared(scorer, task, "the film").item for task in tasks]
            expected = np.concatenate(scorer.score(mixed))
            for future in [pool.submit(replica, mixed) for replica in (first, second)]:
                np.testing.assert_array_equal(np.concatenate(future.result()), expected)


def test_warming_up_runs_every_replica_with_one_text_and_with_several() -> None:
    scorer, _ = scorer_of(replicas=2)
    (first, _), (second, _) = scorer._replicas
    with forward_sizes(first) as sizes, forward_sizes(second) as other_sizes:
        scorer.warm_up()
    assert len(sizes) == len(other_sizes) == 3
    assert sizes == sorted(set(sizes)), "different sizes, so that nothing is compiled for one size alone"
    assert scorer.prefixes.nbytes == 0


def test_a_model_whose_scores_are_not_finite_is_not_ready() -> None:
    lm = build_fresh(seed=7)
    Scorer(lm).require_finite_scores()
    lm.model.get_output_embeddings().weight.data[3] = torch.inf
    with pytest.raises(UnknownModel, match="not finite in float32: set DTYPE"):
        Scorer(lm).require_finite_scores()


def at_last_token(adapter: LoadedAdapter) -> LoadedAdapter:
    assert adapter.injection is not None
    return replace(adapter, injection=replace(adapter.injection, position="last_token"))


def test_the_tokens_that_tasks_share_on_a_text_are_those_that_one_pass_runs_once() -> None:
    scorer, tasks = scorer_of()
    loaded = [*map(at_last_token, tasks[:3]), scorer.base(tasks[0]), tasks[1]]
    items = [prepared(scorer, task, text).item for text in ("the film was good", "the plot was bad") for task in loaded]
    sizes = [Size(scorer.tokens(item), shared) for item, shared in zip(items, scorer.shared_prefixes(items), strict=True)]
    with forward_sizes(scorer._model) as passes:
        scorer.score(items)
    (run,) = passes
    assert run - 15 <= pass_tokens(sizes) <= run
    assert pass_tokens(sizes) < 0.6 * sum(size.tokens for size in sizes)


def test_without_a_prefix_cache_or_in_padded_batches_nothing_is_shared() -> None:
    lm = build()
    for options in (replace(lm.options, share_prefix=False), replace(lm.options, packed=False)):
        scorer = Scorer(replace(lm, options=options))
        item = prepared(scorer, scorer_of()[1][3], "the film was good").item
        assert scorer.shared_prefixes([item, item]) == [[], []]


def test_tasks_of_one_template_tokenise_a_text_once() -> None:
    scorer, tasks = scorer_of()
    prompts: dict[tuple[PromptTemplate, str], Prompt] = {}
    both = [scorer.prepare(task, "the film", truncate=True, prompts=prompts) for task in tasks]
    assert len(prompts) == 1
    assert len({text.item.prompt.ids for text in both if isinstance(text, PreparedText)}) == 1
