"""What passes between the service and those who ask it: prepared texts in, results out. Computes nothing."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from time import monotonic
from typing import Generic, Protocol, TypeVar

import numpy as np
from opentelemetry import trace

from ifed.errors import DeadlineExceeded, IFedError, NoDefaultTask, NotFound, TooManyItems, TooManyTokens, UnknownTask
from ifed.messages.inference import ServedModel, ServedModels
from ifed.messages.rounds import AdapterMeta
from ifed.tensors.label_prior import without_bias
from services.inference.adapters import Adapter, Adapters
from services.inference.engine import Pass, Ran, Scores

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Prepared(Generic[Item]):
    """One text as the engine takes it."""

    item: Item
    tokens: int
    truncated: bool


@dataclass(frozen=True, slots=True)
class Result:
    """One text's log-probabilities over the labels, or why it has none."""

    scores: Scores | None
    truncated: bool = False
    refusal: IFedError | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request got, and exactly what answered it."""

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

    def only(self) -> Result:
        """The result of a request of one text.

        Raises:
            IFedError: why this text has none.
        """
        (result,) = self.results
        if result.refusal is not None:
            raise result.refusal
        return result


BARE, FEW_SHOT = "bare", "few-shot"
MODEL_NAME = re.compile(
    r"(?P<task>[a-z0-9][a-z0-9._-]{0,62})(@((?P<version>[0-9]{1,9})|(?P<bare>bare)|(?P<few>few-shot)(:(?P<shots>[1-9][0-9]{0,2}))?))?"
)
SHOTS = 12


@dataclass(frozen=True, slots=True)
class ModelName:
    """A task, and perhaps a pinned version, the bare model, or the bare model after so many demonstrations."""

    task: str
    version: int | None = None
    bare: bool = False
    shots: int | None = None

    @classmethod
    def parse(cls, model: str) -> ModelName:
        """Read `task`, `task@7`, `task@bare`, `task@few-shot` or `task@few-shot:4`.

        Raises:
            UnknownTask: anything else.
        """
        if (match := MODEL_NAME.fullmatch(model)) is None:
            raise UnknownTask(
                f"{model!r} names no task; give the name of a task, task@7 for its version 7, task@bare for the bare model, "
                "or task@few-shot:12 for the bare model after 12 demonstrations"
            )
        if match["version"] is not None:
            return cls(match["task"], version=int(match["version"]))
        if match["few"] is not None:
            return cls(match["task"], shots=int(match["shots"] or SHOTS))
        return cls(match["task"], bare=match["bare"] is not None)


tracer = trace.get_tracer("ifed.inference")
Loaded = TypeVar("Loaded")
Taken = TypeVar("Taken", contravariant=True)


class Lane(Protocol[Taken]):
    """What runs items through the model; `Engine` is one."""

    async def run(self, items: Sequence[Taken], *, deadline: float | None = None) -> Ran: ...


class Preparer(Protocol[Loaded, Item]):
    """Turns texts into items, and an adapter into what answers without it."""

    async def prepare(self, loaded: Loaded, texts: Sequence[str], *, truncate: bool) -> list[Prepared[Item] | IFedError]: ...

    async def bare(self, adapter: Adapter[Loaded]) -> Loaded: ...

    async def few_shot(self, adapter: Adapter[Loaded], shots: int) -> Loaded: ...


class AnswerObserver(Protocol):
    """Told how every request went; never of its texts."""

    def answered(
        self, task: str, *, items: int, tokens: int, queue: float, model: float, seconds: float, passes: Sequence[Pass]
    ) -> None: ...

    def refused(self, task: str | None, error: str) -> None: ...

    def refused_item(self, task: str, error: str) -> None: ...

    def predicted(self, task: str, digest: str, labels: Sequence[str], rows: Sequence[Scores]) -> None: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one request may ask for."""

    items: int
    tokens: int


class Classifier(Generic[Loaded, Item]):
    """Classifications over the adapters at hand."""

    def __init__(
        self,
        adapters: Adapters[Loaded],
        lane: Lane[Item],
        preparer: Preparer[Loaded, Item],
        *,
        limits: Limits,
        default_task: str | None,
        observer: AnswerObserver,
    ) -> None:
        self._adapters, self._lane, self._preparer, self._observer = adapters, lane, preparer, observer
        self._limits, self._default_task = limits, default_task

    async def classify(
        self, model: str | None, texts: Sequence[str], *, truncate: bool = True, deadline: float | None = None
    ) -> Answer:
        """Log-probabilities for every text; a text that cannot be scored does not stop the others.

        Args:
            model: a task, or a name as `ModelName` reads it; the default task when not given.
            deadline: on the event loop's clock.

        Raises:
            NoDefaultTask: no model named and no default.
            TooManyItems, TooManyTokens: more than the service takes at once.
            QueueFull: too many texts wait already.
            DeadlineExceeded: `deadline` passed.
            NotFound: no such task or version, or nothing to serve yet.
        """
        began = monotonic()
        with self._counted() as known:
            answer = await self._classify(self._named(model), texts, truncate, deadline, known)
        refusals = [one.refusal for one in answer.results if one.refusal is not None]
        if refusals and len(refusals) == len(texts):
            self._observer.refused(answer.task, type(refusals[0]).__name__)
            return answer
        self._observer.answered(
            answer.task,
            items=len(texts) - len(refusals),
            tokens=answer.tokens,
            queue=answer.queue_seconds,
            model=answer.model_seconds,
            seconds=monotonic() - began,
            passes=answer.passes,
        )
        return answer

    async def _classify(self, model: str, texts: Sequence[str], truncate: bool, deadline: float | None, known: list[str]) -> Answer:
        if len(texts) > self._limits.items:
            raise TooManyItems(f"{len(texts)} texts in one request; at most {self._limits.items} are taken, send them in parts")
        name = ModelName.parse(model)
        async with asyncio.timeout_at(deadline):
            adapter = await self._adapters.get(name.task, name.version)
            known.append(name.task)
            with tracer.start_as_current_span("prepare"):
                loaded = await self._variant(name, adapter)
                prepared = await self._preparer.prepare(loaded, texts, truncate=truncate)
        good = [one for one in prepared if isinstance(one, Prepared)]
        if (tokens := sum(one.tokens for one in good)) > self._limits.tokens:
            raise TooManyTokens(f"{tokens} tokens in one request; at most {self._limits.tokens} are taken, send them in parts")
        with tracer.start_as_current_span("model", attributes={"task": name.task, "texts": len(good), "tokens": tokens}):
            ran = await self._lane.run([one.item for one in good], deadline=deadline)
        version, digest = _what_answered(name, adapter)
        if version is not None:
            ran = replace(ran, scores=[without_bias(one, adapter.meta.label_bias) for one in ran.scores])
        if version is not None and name.version is None:
            self._observer.predicted(name.task, digest, adapter.meta.labels, [np.exp(one) for one in ran.scores])
        results = self._results(name.task, prepared, ran)
        took = (ran.queue_seconds, ran.model_seconds, ran.passes)
        return Answer(model, name.task, version, digest, adapter.meta.labels, results, tokens, *took)

    def models(self) -> ServedModels:
        return ServedModels(data=[self._served(adapter) for adapter in self._adapters.current()])

    async def model(self, model: str | None) -> ServedModel:
        """One task, or one of its versions, fetched if need be.

        Raises:
            NotFound: as `classify`.
        """
        name = ModelName.parse(self._named(model))
        served = self._served(await self._adapters.get(name.task, name.version))
        return served if name.version is None else served.model_copy(update={"id": f"{name.task}@{name.version}"})

    async def default(self) -> ServedModel | None:
        """The default task, or None where there is none to serve."""
        if self._default_task is None:
            return None
        with suppress(NotFound):
            return await self.model(self._default_task)
        return None

    def _named(self, model: str | None) -> str:
        if (name := model or self._default_task) is None:
            raise NoDefaultTask("this request names no task and the service has no default; give `model`, or set DEFAULT_TASK")
        return name

    async def _variant(self, name: ModelName, adapter: Adapter[Loaded]) -> Loaded:
        if name.bare:
            return await self._preparer.bare(adapter)
        return adapter.loaded if name.shots is None else await self._preparer.few_shot(adapter, name.shots)

    def _results(self, task: str, prepared: Sequence[Prepared[Item] | IFedError], ran: Ran) -> list[Result]:
        scores = iter(ran.scores)
        results = []
        for one in prepared:
            if isinstance(one, IFedError):
                self._observer.refused_item(task, type(one).__name__)
                results.append(Result(None, refusal=one))
            else:
                results.append(Result(next(scores), one.truncated))
        return results

    @contextmanager
    def _counted(self) -> Iterator[list[str]]:
        known: list[str] = []
        try:
            yield known
        except IFedError as refusal:
            self._observer.refused(known[0] if known else None, type(refusal).__name__)
            raise
        except TimeoutError as reason:
            self._observer.refused(known[0] if known else None, DeadlineExceeded.__name__)
            raise DeadlineExceeded("the deadline of this request passed before its texts were ready for the model") from reason

    def _served(self, adapter: Adapter[Loaded]) -> ServedModel:
        return _served(adapter.meta, adapter.digest, self._adapters.stale.get(adapter.meta.task))


def _what_answered(name: ModelName, adapter: Adapter[Loaded]) -> tuple[int | None, str]:
    if name.bare:
        return None, BARE
    return (adapter.meta.version, adapter.digest) if name.shots is None else (None, f"{FEW_SHOT}:{name.shots}")


def _served(meta: AdapterMeta, digest: str, stale: str | None) -> ServedModel:
    return ServedModel(
        id=meta.task,
        created=int(meta.created_at.timestamp()),
        root=meta.identity.name,
        labels=meta.labels,
        adapter_version=meta.version,
        adapter_digest=digest,
        accuracy=meta.evaluation.accuracy if meta.evaluation else None,
        stale=stale,
    )
