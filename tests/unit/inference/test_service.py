"""A classification names the adapter, keeps the order of the texts, and refuses one bad text without the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from ifed.errors import (
    DeadlineExceeded,
    EmptyText,
    NoDefaultTask,
    Overloaded,
    TooManyItems,
    TooManyTokens,
    UnknownTask,
    UnknownVersion,
)
from ifed.messages.bodies import AdapterBody
from services.inference.demonstrations import DemonstrationFolder
from services.inference.engine import Engine
from services.inference.metrics import Metrics
from services.inference.model import Item
from services.inference.preparation import Preprocessor
from services.inference.service import Classifier, Limits, ModelName
from tests.unit.inference.fakes import FakeScorer, FakeSource, adapters_of, body, metrics_of, sample


@asynccontextmanager
async def classifier_of(
    scorer: FakeScorer | None = None,
    metrics: Metrics | None = None,
    *,
    demonstrations: DemonstrationFolder | None = None,
    default_task: str | None = None,
    label_bias: list[float] | None = None,
    abstain_below: float | None = None,
) -> AsyncIterator[Classifier]:
    """A classifier of the tasks `a` in versions 2 and 3 and `b`, which takes at most 3 texts and 30 tokens."""
    scorer, metrics, source = scorer or FakeScorer(), metrics or metrics_of(), FakeSource()
    for version in (2, 3):
        source.promote(body("a", version, label_bias=label_bias, abstain_below=abstain_below))
    source.promote(body("b", 1))
    preprocessor = Preprocessor(scorer, demonstrations or DemonstrationFolder(None))
    engine = Engine[Item]([scorer.score], tokens=scorer.tokens, token_budget=100, gather_seconds=0.0, max_queue=10, metrics=metrics)
    engine.start()
    limits = Limits(items=3, tokens=30)
    adapters = adapters_of(source, metrics, max_followed=0, lookups=1)
    yield Classifier(adapters, engine, preprocessor, limits=limits, default_task=default_task, metrics=metrics)
    await engine.stop()
    await preprocessor.close()


async def test_results_keep_the_order_and_the_answer_names_the_adapter() -> None:
    async with classifier_of() as classifier:
        answer = await classifier.classify("a", ["no", "longer", "much, much longer"])
    scores = np.exp([result.scores for result in answer.results if result.scores is not None])
    assert scores == pytest.approx(np.array([[0.9, 0.1], [0.25, 0.75], [0.25, 0.75]]))
    assert [result.truncated for result in answer.results] == [False, False, True]
    assert (answer.task, answer.version, answer.digest, answer.labels) == ("a", 3, "digest-3", ["no", "yes"])
    assert answer.tokens == 2 + 6 + 17


async def test_a_variant_answers_only_if_it_is_named() -> None:
    scorer = FakeScorer()
    async with classifier_of(scorer) as classifier:
        answers = [await classifier.classify(model, ["no"]) for model in ("a", "a@2", "a@base", "a@bare")]
    assert scorer.prepared_with == ["version 3", "version 2", "base", "base"]
    assert [(answer.version, answer.digest) for answer in answers] == [
        (3, "digest-3"),
        (2, "digest-2"),
        (None, "base"),
        (None, "bare"),
    ]


async def test_few_shot_answers_name_the_number_of_demonstrations(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{number}", "label": "yes"}}\n' for number in range(12)))
    scorer = FakeScorer()
    async with classifier_of(scorer, demonstrations=DemonstrationFolder(tmp_path)) as classifier:
        answers = [await classifier.classify(model, ["no"]) for model in ("a@few-shot:4", "a@few-shot")]
    assert [len(texts) for texts in scorer.few_shot_prompts] == [4, 12]
    assert [(answer.version, answer.digest) for answer in answers] == [(None, "few-shot:4"), (None, "few-shot:12")]


@pytest.mark.parametrize("name", ["", "A", "a@", "a@b", "a@-1", "a@few-shot:0", "a@base:2", "a@bare:2", "../a", "a@7@base"])
def test_a_malformed_name_is_an_unknown_task(name: str) -> None:
    with pytest.raises(UnknownTask):
        ModelName.parse(name)


async def test_one_bad_text_does_not_fail_the_others() -> None:
    metrics = metrics_of()
    async with classifier_of(metrics=metrics) as classifier:
        answer = await classifier.classify("a", ["no", "", "longer"])
    good, bad, other = answer.results
    assert (good.refusal, type(bad.refusal), other.refusal) == (None, EmptyText, None)
    assert bad.scores is None
    assert sample(metrics, "items_refused_total", task="a", error="EmptyText") == 1
    assert sample(metrics, "requests_total", task="a", outcome="ok") == 1
    assert sample(metrics, "items_total", task="a") == 2
    assert sample(metrics, "tokens_total", task="a") == 8
    assert sample(metrics, "task_batch_items_sum", task="a") == 2
    assert sample(metrics, "label_share", task="a", label="yes") == 0.5


async def test_a_request_of_bad_texts_alone_is_a_refusal() -> None:
    metrics = metrics_of()
    async with classifier_of(metrics=metrics) as classifier:
        answer = await classifier.classify("a", [""])
    with pytest.raises(EmptyText):
        answer.single()
    assert sample(metrics, "requests_total", task="a", outcome="EmptyText") == 1
    assert sample(metrics, "requests_total", task="a", outcome="ok") is None


async def test_a_request_beyond_the_limits_is_refused() -> None:
    metrics = metrics_of()
    async with classifier_of(metrics=metrics) as classifier:
        with pytest.raises(TooManyItems, match="4 texts in one request; at most 3"):
            await classifier.classify("a", ["x"] * 4)
        with pytest.raises(TooManyTokens, match="31 tokens in one request; at most 30"):
            await classifier.classify("a", ["x" * 31])
    assert sample(metrics, "requests_total", task="", outcome="TooManyItems") == 1
    assert sample(metrics, "requests_total", task="a", outcome="TooManyTokens") == 1


async def test_a_deadline_counts_before_the_model_too() -> None:
    metrics = metrics_of()
    async with classifier_of(metrics=metrics) as classifier:
        with pytest.raises(DeadlineExceeded):
            await classifier.classify("a", ["slow"], deadline=asyncio.get_running_loop().time() + 0.05)
    assert sample(metrics, "requests_total", task="a", outcome="DeadlineExceeded") == 1


async def test_a_request_without_a_task_takes_the_default_or_is_refused() -> None:
    async with classifier_of(default_task="a") as classifier:
        assert (await classifier.classify(None, ["no"])).task == "a"
        default = await classifier.default()
        assert default is not None
        assert default.id == "a"
    async with classifier_of(default_task="missing") as classifier:
        assert await classifier.default() is None
    async with classifier_of() as classifier:
        assert await classifier.default() is None
        with pytest.raises(NoDefaultTask):
            await classifier.classify(None, ["no"])


async def test_the_tasks_in_the_cache_are_listed() -> None:
    async with classifier_of() as classifier:
        assert classifier.models().data == []
        await classifier.classify("a", ["no"])
        (served,) = classifier.models().data
        assert (served.id, served.adapter_version, served.root, served.stale) == ("a", 3, "tiny", None)
        pinned = await classifier.model("a@2")
    assert (pinned.id, pinned.adapter_version) == ("a@2", 2)


async def test_the_label_bias_of_an_adapter_is_removed_but_not_from_the_bare_model() -> None:
    async with classifier_of(label_bias=[float(np.log(0.9)), float(np.log(0.1))]) as classifier:
        (calibrated,) = (await classifier.classify("a", ["no"])).results
        (bare,) = (await classifier.classify("a@bare", ["no"])).results
    assert calibrated.scores is not None
    assert np.exp(calibrated.scores) == pytest.approx([0.5, 0.5])
    assert bare.scores is not None
    assert np.exp(bare.scores) == pytest.approx([0.9, 0.1])


async def test_a_text_below_the_threshold_has_probabilities_and_no_label() -> None:
    metrics = metrics_of()
    async with classifier_of(metrics=metrics, abstain_below=0.8) as classifier:
        answer = await classifier.classify("a", ["no", "longer", ""])
        base = await classifier.classify("a@base", ["longer"])
        assert (await classifier.model("a")).abstain_below == 0.8
    assert answer.abstain_below == 0.8
    assert [(result.abstained, result.scores is not None) for result in answer.results] == [
        (False, True),
        (True, True),
        (False, False),
    ]
    assert (base.abstain_below, base.results[0].abstained) == (None, False), "the threshold is for the adapter's probabilities"
    assert sample(metrics, "items_abstained_total", task="a") == 1


async def test_the_threshold_holds_for_the_probability_that_is_served() -> None:
    # Of 0.25 and 0.75 the bias leaves 0.5 each; a text that reaches the threshold has a label.
    bias = [float(np.log(0.25)), float(np.log(0.75))]
    for threshold, abstained in ((0.49, False), (0.6, True)):
        async with classifier_of(label_bias=bias, abstain_below=threshold) as classifier:
            (result,) = (await classifier.classify("a", ["longer"])).results
        assert result.abstained is abstained
    async with classifier_of(abstain_below=0.75) as classifier:
        (result,) = (await classifier.classify("a", ["longer"])).results
    assert not result.abstained


def test_an_adapter_from_before_thresholds_is_read_and_answers_every_text() -> None:
    sent = body("a", 3).to_bytes()
    assert b"abstain_below" not in sent
    assert AdapterBody.from_bytes(sent).meta.abstain_below is None


async def test_look_ups_are_counted_for_the_caller() -> None:
    async with classifier_of() as classifier:
        first, second = classifier.for_caller("one"), classifier.for_caller("two")
        with pytest.raises(UnknownTask):
            await first.classify("unknown", ["no"])
        with pytest.raises(Overloaded):
            await first.model("other")
        assert (await second.classify("a", ["no"])).task == "a"


async def test_several_tasks_answer_for_every_text_in_the_order_they_are_named() -> None:
    metrics = metrics_of()
    async with classifier_of(metrics=metrics, label_bias=[float(np.log(0.9)), float(np.log(0.1))]) as classifier:
        first, second, third = await classifier.classify_tasks(["b", "a@2", "a@base"], ["no"])
    assert [(answer.model, answer.task, answer.version) for answer in (first, second, third)] == [
        ("b", "b", 1),
        ("a@2", "a", 2),
        ("a@base", "a", None),
    ]
    scores = [answer.single().scores for answer in (first, second, third)]
    np.testing.assert_allclose(np.exp(scores), [[0.9, 0.1], [0.5, 0.5], [0.9, 0.1]], rtol=1e-5)
    assert [answer.tokens for answer in (first, second, third)] == [2, 2, 2]
    assert sample(metrics, "requests_total", task="b", outcome="ok") == 1
    assert sample(metrics, "items_total", task="a") == 2
    assert sample(metrics, "batch_items_sum") == 3
    assert sample(metrics, "task_batch_items_count", task="b") == 1


async def test_the_pairs_of_a_text_and_a_task_count_in_the_limits_before_anything_is_looked_up() -> None:
    async with classifier_of() as classifier:
        with pytest.raises(TooManyItems, match="2 texts in one request for each of 2 tasks, 4 in all; at most 3"):
            await classifier.classify_tasks(["a", "unknown"], ["x", "x"])
        with pytest.raises(TooManyTokens, match="32 tokens in one request; at most 30"):
            await classifier.classify_tasks(["a", "b"], ["x" * 16])


async def test_of_several_tasks_the_unknown_one_is_named() -> None:
    metrics = metrics_of()
    async with classifier_of(metrics=metrics) as classifier:
        with pytest.raises(UnknownTask, match="model 'missing': no task 'missing'"):
            await classifier.classify_tasks(["a", "missing", "b"], ["no"])
        with pytest.raises(UnknownVersion, match="model 'a@9': no version 9"):
            await classifier.classify_tasks(["b", "a@9"], ["no"])
    assert sample(metrics, "requests_total", task="", outcome="UnknownTask") == 1
    assert sample(metrics, "requests_total", task="a", outcome="ok") is None


async def test_a_refused_text_is_refused_for_every_task() -> None:
    async with classifier_of() as classifier:
        answers = await classifier.classify_tasks(["a", "b"], [""])
    assert [type(answer.results[0].refusal) for answer in answers] == [EmptyText, EmptyText]


async def test_each_of_several_tasks_abstains_below_its_own_threshold() -> None:
    async with classifier_of(abstain_below=0.8) as classifier:
        own, other = await classifier.classify_tasks(["a", "b"], ["longer"])
    assert (own.abstain_below, own.single().abstained) == (0.8, True)
    assert (other.abstain_below, other.single().abstained) == (None, False)
