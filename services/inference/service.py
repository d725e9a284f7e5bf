"""Classify the texts of a request: look up the adapter, prepare the texts, run them, and return labelled results."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

import numpy as np
from opentelemetry import trace

from ifed.errors import DeadlineExceeded, IFedError, NoDefaultTask, NotFound, TooManyItems, TooManyTokens, UnknownTask
from ifed.messages.inference import ServedModel, ServedModels
from ifed.tensors.label_prior import without_bias
from ifed.tensors.values import Float32
from services.inference.adapters import Adapter, AdapterCache
from services.inference.engine import Engine, EngineResult, Pass, SharedPrefix
from services.inference.metrics import Metrics
from services.inference.preparation import Preprocessor

if TYPE_CHECKING:
    from services.inference.model import Item, LoadedAdapter, PreparedText, Prompts

FEW_SHOT = "few-shot"
DEFAULT_SHOTS = 12
MODEL_NAME = re.compile(
    r"(?P<task>[a-z0-9][a-z0-9._-]{0,62})(@((?P<version>[0-9]{1,9})|(?P<base>base|bare)|(?P<few>few-shot)(:(?P<shots>[1-9][0-9]{0,2}))?))?"
)
tracer = trace.get_tracer("ifed.inference")


@dataclass(frozen=True, slots=True)
class ModelName:
    """What the `model` of a request names: a task with its promoted adapter, or one of three variants.

    Attributes:
        task: the name of the task.
        version: a pinned version of the adapter.
        base: the model without an adapter, by the word that named it: `base`, or its alias `bare`.
        shots: the model without an adapter, after this number of demonstrations.
    """

    task: str
    version: int | None = None
    base: str | None = None
    shots: int | None = None

    @classmethod
    def parse(cls, model: str) -> ModelName:
        """Parse `task`, `task@7`, `task@base`, `task@few-shot` or `task@few-shot:4`.

        Raises:
            UnknownTask: the name has another form.
        """
        if (match := MODEL_NAME.fullmatch(model)) is None:
            raise UnknownTask(
                f"{model!r} is not the name of a task; use the task's name, task@7 for its version 7, task@base for the base model, "
                "or task@few-shot:12 for the base model after 12 demonstrations"
            )
        if match["version"] is not None:
            return cls(match["task"], version=int(match["version"]))
        if match["few"] is not None:
            return cls(match["task"], shots=int(match["shots"] or DEFAULT_SHOTS))
        return cls(match["task"], base=match["base"])


@dataclass(frozen=True, slots=True)
class Result:
    """The classification of one text.

    Attributes:
        scores: log-probabilities over the labels, float32, shape (labels,); None for a text that was refused.
        truncated: whether the text was truncated.
        refusal: why it has no scores.
        abstained: whether it has scores and no label, because the highest probability is below the task's threshold.
    """

    scores: Float32 | None
    truncated: bool = False
    refusal: IFedError | None = None
    abstained: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """The classification of all texts of a request under one task.

    Attributes:
        model: what the request named.
        task: the name of its task.
        version: of the adapter; None for the base model and for few-shot prompting.
        digest: of the adapter; `base`, `bare` or `few-shot:N`, as it was named, where there is none.
        labels: of the task, in order.
        results: one per text, in order.
        tokens: of all prompts.
        queue_seconds: time of the request in the queue.
        model_seconds: time of the request in the model.
        passes: the forward passes that ran these texts under this task.
        abstain_below: the probability below which a text has no label; None if every text has one.
    """

    model: str
    task: str
    version: int | None
    digest: str
    labels: Sequence[str]
    results: Sequence[Result]
    tokens: int
    queue_seconds: float
    model_seconds: float
    passes: Sequence[Pass] = ()
    abstain_below: float | None = None

    def single(self) -> Result:
        """Return the result of a request of one text.

        Raises:
            IFedError: the refusal of this text.
        """
        (result,) = self.results
        if result.refusal is not None:
            raise result.refusal
        return result


@dataclass(frozen=True, slots=True)
class _Task:
    """One of the tasks of a request: what it was named, its adapter, and the texts as they were prepared for it."""

    name: ModelName
    model: str
    adapter: Adapter
    prepared: Sequence[PreparedText | IFedError]


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest request: texts, counted for each of its tasks, and tokens of all of them together."""

    items: int
    tokens: int


class Classifier:
    """Classify texts with the adapters of any number of tasks on one model."""

    def __init__(
        self,
        adapters: AdapterCache,
        engine: Engine[Item],
        preprocessor: Preprocessor,
        *,
        limits: Limits,
        default_task: str | None,
        metrics: Metrics,
        caller: str | None = None,
    ) -> None:
        self._adapters, self._engine, self._preprocessor, self._metrics = adapters, engine, preprocessor, metrics
        self._limits, self._default_task = limits, default_task
        self._caller = caller

    def for_caller(self, caller: str | None) -> Classifier:
        """Return the same classifier for the requests of one caller, whose look-ups of adapters are limited."""
        return Classifier(
            self._adapters,
            self._engine,
            self._preprocessor,
            limits=self._limits,
            default_task=self._default_task,
            metrics=self._metrics,
            caller=caller,
        )

    async def classify(
        self, model: str | None, texts: Sequence[str], *, truncate: bool = True, deadline: float | None = None
    ) -> Answer:
        """Classify every text with one task; see `classify_tasks`.

        Args:
            model: a name as `ModelName.parse` takes it; None for the default task.

        Raises:
            NoDefaultTask: no model was named and there is no default task.
        """
        (answer,) = await self.classify_tasks([model], texts, truncate=truncate, deadline=deadline)
        return answer

    async def classify_tasks(
        self, models: Sequence[str | None], texts: Sequence[str], *, truncate: bool = True, deadline: float | None = None
    ) -> list[Answer]:
        """Classify every text with every task, and return an answer for each task, in order.

        A text that cannot be classified does not affect the others. All pairs of a text and a task are in the queue together, those of one
        text next to each other, so that tasks whose prompts begin alike share what their injections leave unchanged.

        Args:
            models: names as `ModelName.parse` takes them.
            texts: in the order of the results.
            truncate: whether a text that is too long is truncated; otherwise it is refused.
            deadline: on the event loop's clock.

        Raises:
            TooManyItems, TooManyTokens: the request is larger than the limits; a text counts once for each task.
            QueueFull: too many texts wait already.
            Overloaded: the caller has named too many tasks or versions that are not cached.
            DeadlineExceeded: `deadline` passed.
            NotFound: there is no such task, version or set of demonstrations, or a task has no adapter yet; of several tasks the first.
        """
        started_at = monotonic()
        with self._recorded_refusals() as known_tasks:
            answers = await self._classify([self._named(model) for model in models], texts, truncate, deadline, known_tasks)
        for answer in answers:
            self._record(answer, monotonic() - started_at)
        return answers

    def models(self) -> ServedModels:
        """Return the tasks whose adapters are cached."""
        return ServedModels(data=[self._served(adapter) for adapter in self._adapters.current()])

    async def model(self, model: str | None) -> ServedModel:
        """Return one task, or one of its versions; its adapter is fetched unless it is cached.

        Raises:
            NotFound, Overloaded: as `classify`.
        """
        name = ModelName.parse(self._named(model))
        served = self._served(await self._adapters.get(name.task, name.version, caller=self._caller))
        return served if name.version is None else served.model_copy(update={"id": f"{name.task}@{name.version}"})

    async def default(self) -> ServedModel | None:
        """Return the default task, or None if there is none to serve."""
        if self._default_task is None:
            return None
        with suppress(NotFound):
            return await self.model(self._default_task)
        return None

    async def _classify(
        self, models: Sequence[str], texts: Sequence[str], truncate: bool, deadline: float | None, known_tasks: list[str]
    ) -> list[Answer]:
        self._check_items(len(texts), len(models))
        names = [ModelName.parse(model) for model in models]
        async with asyncio.timeout_at(deadline):
            adapters = await self._look_up(names, models)
            known_tasks.extend(dict.fromkeys(name.task for name in names))
            tasks = []
            with tracer.start_as_current_span("prepare"):
                prompts: Prompts = {}
                for name, model, adapter in zip(names, models, adapters, strict=True):
                    loaded = await self._variant(name, adapter)
                    prepared = await self._preprocessor.prepare(loaded, texts, truncate=truncate, prompts=prompts)
                    tasks.append(_Task(name, model, adapter, prepared))
            pairs = [(place, task.prepared[index]) for index in range(len(texts)) for place, task in enumerate(tasks)]
            accepted = [(place, text) for place, text in pairs if not isinstance(text, IFedError)]
            if (tokens := sum(text.tokens for _, text in accepted)) > self._limits.tokens:
                raise TooManyTokens(f"{tokens} tokens in one request; at most {self._limits.tokens} are allowed, split the request")
            items = [text.item for _, text in accepted]
            shared: Sequence[Sequence[SharedPrefix]] | None = None
            if len(tasks) > 1:
                shared = await self._preprocessor.shared_prefixes(items)
        attributes: dict[str, str | int] = {
            "task": ",".join(name.task for name in names),
            "texts": len(accepted),
            "tokens": tokens,
        }
        with tracer.start_as_current_span("model", attributes=attributes):
            result = await self._engine.run(items, shared=shared, deadline=deadline)
        scores_by_task: list[dict[int, Float32]] = [{} for _ in tasks]
        for index, ((place, _), scores) in enumerate(zip(accepted, result.scores, strict=True)):
            scores_by_task[place][index] = scores
        return [self._answer(task, own_scores, result) for task, own_scores in zip(tasks, scores_by_task, strict=True)]

    def _check_items(self, texts: int, tasks: int) -> None:
        """Raise TooManyItems if there are too many pairs of a text and a task."""
        if texts * tasks > self._limits.items:
            each = "" if tasks == 1 else f" for each of {tasks} tasks, {texts * tasks} in all"
            raise TooManyItems(f"{texts} texts in one request{each}; at most {self._limits.items} are allowed, split the request")

    async def _look_up(self, names: Sequence[ModelName], models: Sequence[str]) -> list[Adapter]:
        """Return the adapter of each name; of several that are refused, raise the first refusal, which says what was named."""
        lookups = [self._adapters.get(name.task, name.version, caller=self._caller) for name in names]
        if len(lookups) == 1:
            return [await lookups[0]]
        adapters: list[Adapter] = []
        for model, adapter in zip(models, await asyncio.gather(*lookups, return_exceptions=True), strict=True):
            if isinstance(adapter, IFedError):
                raise type(adapter)(f"model {model!r}: {adapter.detail}", retry_after=adapter.retry_after) from adapter
            if isinstance(adapter, BaseException):
                raise adapter
            adapters.append(adapter)
        return adapters

    def _answer(self, task: _Task, own_scores: Mapping[int, Float32], result: EngineResult) -> Answer:
        """Return the answer of one task of a request.

        Args:
            own_scores: of the texts that were not refused, in order, by their index in the engine's result.
        """
        name, meta = task.name, task.adapter.meta
        scores: Sequence[Float32] = list(own_scores.values())
        version, digest = _variant_identity(name, task.adapter)
        # The threshold was chosen for the adapter: other prompts and the base model have other probabilities.
        abstain_below = None if version is None else meta.abstain_below
        if version is not None:
            scores = [without_bias(row, meta.label_bias) for row in scores]
        if version is not None and name.version is None:
            self._metrics.record_predictions(name.task, digest, meta.labels, [np.exp(row) for row in scores])
        return Answer(
            model=task.model,
            task=name.task,
            version=version,
            digest=digest,
            labels=meta.labels,
            results=self._results(name.task, task.prepared, scores, abstain_below),
            tokens=sum(text.tokens for text in task.prepared if not isinstance(text, IFedError)),
            queue_seconds=result.queue_seconds,
            model_seconds=result.model_seconds,
            passes=[one for one in result.passes if not own_scores.keys().isdisjoint(one.indices)],
            abstain_below=abstain_below,
        )

    def _record(self, answer: Answer, seconds: float) -> None:
        """Record one task's answer: as a refusal if every text was refused."""
        refusals = [result.refusal for result in answer.results if result.refusal is not None]
        if refusals and len(refusals) == len(answer.results):
            self._metrics.record_refusal(answer.task, type(refusals[0]).__name__)
            return
        self._metrics.record_answer(
            answer.task,
            items=len(answer.results) - len(refusals),
            tokens=answer.tokens,
            queue_seconds=answer.queue_seconds,
            model_seconds=answer.model_seconds,
            seconds=seconds,
        )
        for forward_pass in answer.passes:
            self._metrics.record_task_pass(answer.task, items=forward_pass.items, fill=forward_pass.fill)

    def _named(self, model: str | None) -> str:
        if (name := model or self._default_task) is None:
            raise NoDefaultTask("the request names no task and the service has no default task; set `model`, or DEFAULT_TASK")
        return name

    async def _variant(self, name: ModelName, adapter: Adapter) -> LoadedAdapter:
        if name.base is not None:
            return await self._preprocessor.base(adapter)
        return adapter.loaded if name.shots is None else await self._preprocessor.few_shot(adapter, name.shots)

    def _results(
        self, task: str, prepared: Sequence[PreparedText | IFedError], scores: Sequence[Float32], abstain_below: float | None
    ) -> list[Result]:
        """Merge scores and refusals into one result per text."""
        remaining = iter(scores)
        results = []
        for text in prepared:
            if isinstance(text, IFedError):
                self._metrics.record_item_refusal(task, type(text).__name__)
                results.append(Result(None, refusal=text))
            else:
                row = next(remaining)
                results.append(Result(row, text.truncated, abstained=below(row, abstain_below)))
        self._metrics.record_abstentions(task, sum(result.abstained for result in results))
        return results

    @contextmanager
    def _recorded_refusals(self) -> Iterator[list[str]]:
        """Record every refusal, under the tasks in the yielded list once they are known, and raise a passed deadline by its name."""
        known_tasks: list[str] = []
        try:
            yield known_tasks
        except IFedError as refusal:
            self._record_refusal(known_tasks, type(refusal))
            raise
        except TimeoutError as reason:
            self._record_refusal(known_tasks, DeadlineExceeded)
            raise DeadlineExceeded("the deadline passed before the texts of this request were ready for the model") from reason

    def _record_refusal(self, known_tasks: Sequence[str], refusal: type[IFedError]) -> None:
        for task in known_tasks:
            self._metrics.record_refusal(task, refusal.__name__)
        if not known_tasks:
            self._metrics.record_refusal(None, refusal.__name__)

    def _served(self, adapter: Adapter) -> ServedModel:
        meta = adapter.meta
        return ServedModel(
            id=meta.task,
            created=int(meta.created_at.timestamp()),
            root=meta.identity.name,
            labels=meta.labels,
            adapter_version=meta.version,
            adapter_digest=adapter.digest,
            accuracy=meta.evaluation.accuracy if meta.evaluation else None,
            expected_calibration_error=meta.evaluation.expected_calibration_error if meta.evaluation else None,
            abstain_below=meta.abstain_below,
            stale=self._adapters.stale.get(meta.task),
        )


def below(scores: Float32, threshold: float | None) -> bool:
    """Return whether the highest probability of log-probabilities, as a caller sees it, is below a threshold; never without one."""
    return threshold is not None and float(np.exp(scores.max())) < threshold


def _variant_identity(name: ModelName, adapter: Adapter) -> tuple[int | None, str]:
    """Return version and digest of what answers: those of the adapter, or no version and the name of the variant."""
    if name.base is not None:
        return None, name.base
    return (adapter.meta.version, adapter.digest) if name.shots is None else (None, f"{FEW_SHOT}:{name.shots}")
