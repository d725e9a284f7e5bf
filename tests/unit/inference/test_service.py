"""A classification names what answered, in the order asked, and one bad text does not fail the others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from ifed.errors import DeadlineExceeded, EmptyText, IFedError, NoDefaultTask, TooManyItems, TooManyTokens, UnknownTask
from ifed.messages.inference import ClassifyRequest
from services.inference.adapters import Adapter
from services.inference.api.formats import HubRequest, PredictRequest, classified, headers_of, hub_predictions, predictions
from services.inference.engine import Ran
from services.inference.service import Classifier, Limits, ModelName, Prepared
from tests.unit.inference.fakes import FakeSource, Observer, adapters_of, body


class Lane:
    """Calls a text positive when it is long; one that says `wait` takes its time."""

    async def run(self, items: Sequence[str], *, deadline: float | None = None) -> Ran:
        scores = [np.log(np.array([0.25, 0.75] if len(item) > 3 else [0.9, 0.1], np.float32)) for item in items]
        return Ran(scores, 0.0015, 0.25)


class Preparer:
    """Passes texts on, refuses blank ones, and remembers what was to answer."""

    def __init__(self) -> None:
        self.loaded: list[int] = []

    async def prepare(self, loaded: int, texts: Sequence[str], *, truncate: bool) -> list[Prepared[str] | IFedError]:
        self.loaded.append(loaded)
        if texts[0] == "slow":
            await asyncio.sleep(5)
        return [Prepared(text, len(text), len(text) > 9) if text else EmptyText("empty") for text in texts]

    async def bare(self, adapter: Adapter[int]) -> int:
        return -1

    async def few_shot(self, adapter: Adapter[int], shots: int) -> int:
        return -100 - shots


def classifier_of(
    preparer: Preparer | None = None,
    observer: Observer | None = None,
    *,
    default: str | None = None,
    label_bias: list[float] | None = None,
) -> Classifier[int, str]:
    source = FakeSource()
    for version in (2, 3):
        adapter = body("a", version)
        adapter.meta = adapter.meta.model_copy(update={"label_bias": label_bias})
        source.promote(adapter)
    watching = observer or Observer()
    adapters = adapters_of(source, watching, max_followed=0)
    limits = Limits(items=3, tokens=30)
    return Classifier(adapters, Lane(), preparer or Preparer(), limits=limits, default_task=default, observer=watching)


async def test_answers_keep_the_order_and_say_what_answered() -> None:
    request = ClassifyRequest(model="a", input=["no", "longer", "much, much longer"])
    answer = classified(request, await classifier_of().classify("a", request.texts))
    assert [one.label for one in answer.data] == ["no", "yes", "yes"]
    assert [one.index for one in answer.data] == [0, 1, 2]
    assert answer.data[0].probs == pytest.approx([0.9, 0.1])
    assert [one.truncated for one in answer.data] == [False, False, True]
    assert (answer.task, answer.adapter_version, answer.adapter_digest, answer.labels) == ("a", 3, "digest-3", ["no", "yes"])
    assert answer.usage.prompt_tokens == 2 + 6 + 17


async def test_headers_say_what_answered_and_how_long_it_took() -> None:
    assert headers_of(await classifier_of().classify("a@2", ["no"])) == {
        "X-Queue-Time": "2",
        "X-Inference-Time": "250",
        "X-Task": "a",
        "X-Adapter-Version": "2",
        "X-Adapter-Digest": "digest-2",
    }


async def test_other_ways_to_answer_are_taken_only_when_they_are_named() -> None:
    preparer = Preparer()
    classifier = classifier_of(preparer)
    found = [await classifier.classify(model, ["no"]) for model in ("a", "a@2", "a@bare", "a@few-shot:4", "a@few-shot")]
    assert preparer.loaded == [3, 2, -1, -104, -112]
    assert [(one.version, one.digest) for one in found] == [
        (3, "digest-3"),
        (2, "digest-2"),
        (None, "bare"),
        (None, "few-shot:4"),
        (None, "few-shot:12"),
    ]


@pytest.mark.parametrize("name", ["", "A", "a@", "a@b", "a@-1", "a@few-shot:0", "a@bare:2", "../a", "a@7@bare"])
def test_a_name_that_means_nothing_is_an_unknown_task(name: str) -> None:
    with pytest.raises(UnknownTask):
        ModelName.parse(name)


async def test_one_bad_text_does_not_fail_the_others() -> None:
    observer = Observer()
    request = ClassifyRequest(model="a", input=["no", "", "longer"])
    answer = await classifier_of(observer=observer).classify("a", request.texts)
    good, bad, other = classified(request, answer).data
    assert (good.label, bad.label, other.label) == ("no", None, "yes")
    assert bad.error is not None
    assert (bad.error.error, bad.probs, bad.num_classes) == ("EmptyText", [], 2)
    assert observer.told["refused item", "a", "EmptyText"] == 1
    assert observer.told["answered", "a", 2, 8] == 1
    assert observer.predictions == [("a", "digest-3", 2)]


async def test_one_bad_text_alone_is_a_refusal() -> None:
    request, observer = ClassifyRequest(model="a", input=""), Observer()
    with pytest.raises(EmptyText):
        classified(request, await classifier_of(observer=observer).classify("a", request.texts))
    assert observer.told["refused", "a", "EmptyText"] == 1
    assert not any(what[0] == "answered" for what in observer.told)


async def test_more_than_the_service_takes_is_refused_by_number() -> None:
    observer = Observer()
    classifier = classifier_of(observer=observer)
    with pytest.raises(TooManyItems, match="4 texts in one request; at most 3"):
        await classifier.classify("a", ["x"] * 4)
    with pytest.raises(TooManyTokens, match="31 tokens in one request; at most 30"):
        await classifier.classify("a", ["x" * 31])
    assert observer.told["refused", None, "TooManyItems"] == 1
    assert observer.told["refused", "a", "TooManyTokens"] == 1


async def test_a_deadline_counts_before_the_model_too() -> None:
    with pytest.raises(DeadlineExceeded):
        await classifier_of().classify("a", ["slow"], deadline=asyncio.get_running_loop().time() + 0.01)


async def test_a_request_without_a_task_takes_the_default_or_is_refused() -> None:
    assert (await classifier_of(default="a").classify(None, ["no"])).task == "a"
    with pytest.raises(NoDefaultTask):
        await classifier_of().classify(None, ["no"])


async def test_what_is_served_is_listed() -> None:
    classifier = classifier_of()
    assert classifier.models().data == []
    await classifier.classify("a", ["no"])
    (served,) = classifier.models().data
    assert (served.id, served.adapter_version, served.root, served.stale) == ("a", 3, "tiny", None)
    assert (await classifier.model("a@2")).adapter_version == 2


async def test_top_k_lists_the_best_first_in_every_shape() -> None:
    answer = await classifier_of().classify("a", ["longer"])
    (entry,) = classified(ClassifyRequest(model="a", input="longer", top_k=1), answer).data
    assert entry.top is not None
    assert [one.label for one in entry.top] == ["yes"]
    flat = predictions(PredictRequest(inputs="longer"), answer)
    assert [one.label for one in flat] == ["yes", "no"]  # type: ignore[union-attr]  # flat for one text
    (nested,) = hub_predictions(HubRequest.model_validate({"inputs": "longer", "parameters": {"top_k": 1}}), answer)
    assert [one.label for one in nested] == ["yes"]  # type: ignore[union-attr]  # no error among them


async def test_the_label_bias_of_an_adapter_is_taken_out_and_the_bare_model_left_as_it_is() -> None:
    classifier = classifier_of(label_bias=[float(np.log(0.9)), float(np.log(0.1))])
    even = await classifier.classify("a", ["no"])
    assert np.exp(even.results[0].scores) == pytest.approx([0.5, 0.5])
    bare = await classifier.classify("a@bare", ["no"])
    assert np.exp(bare.results[0].scores) == pytest.approx([0.9, 0.1])
