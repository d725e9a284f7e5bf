"""Serve aggregates: the context vector, the coefficients, and the adapter made of both."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import structlog

from ifed.errors import NothingYet
from ifed.messages.bodies import AdapterBody, read_coefficients, read_context, read_head
from ifed.messages.enums import HeadState
from ifed.messages.rounds import AdapterMeta, Evaluation, Reading
from ifed.tensors.values import TensorBody, digest_of
from services.aggregator.application import messages
from services.aggregator.application.dependencies import Dependencies
from services.aggregator.domain.aggregates import Aggregate, HeadRevision
from services.aggregator.domain.evaluation import EvaluationResult
from services.aggregator.domain.task import Task
from services.aggregator.runtime.cache import ProcessCache
from services.aggregator.runtime.long_poll import NOBODY, Caller
from services.aggregator.storage.database import UnitOfWork

log = structlog.get_logger(__name__)
ADAPTER_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class TensorResponse:
    """A safetensors body, and its sha256 in hexadecimal."""

    body: bytes
    digest: str


class AdapterStore:
    """Read aggregates from the cache, or else from the database, which has their digests.

    A body from the cache counts only if it has that digest: whoever can write to Redis could otherwise choose what is served. Adapters
    have no digest in the database, so each process keeps those that it made itself.
    """

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies
        self._adapters = ProcessCache(max_bytes=ADAPTER_BYTES)

    async def context(self, name: str, version: int | None = None) -> TensorResponse:
        """Return one version of the global context vector, the newest by default.

        Raises:
            NothingYet: the task has no context vector.
            UnknownVersion: it has no such version.
        """
        async with self._dependencies.database.read_only() as work:
            await work.tasks.get(name)
            head = await work.aggregates.context(name, version)
        return TensorResponse(await self._context_body(head), head.digest)

    async def coefficients(self, name: str, version: int | None) -> TensorResponse:
        """Return one version of the coefficients, the newest by default.

        Raises:
            NothingYet: the task has no coefficients.
            UnknownVersion: it has no such version.
        """
        async with self._dependencies.database.read_only() as work:
            task = await work.tasks.get(name)
            head = await _coefficients(work, task, task.version if version is None else version)
        return TensorResponse(await self._coefficients_body(head), head.digest)

    async def adapter(
        self, name: str, version: int | None, *, known: frozenset[str], wait: float, caller: Caller = NOBODY
    ) -> TensorResponse:
        """Return the adapter of one version, by default of the one that the policy serves.

        Args:
            caller: who waits.
            known: digests that the caller has; while the adapter is one of them, wait up to `wait` seconds for another.

        Raises:
            NothingYet: no version is served: at once if the caller has an adapter, which it must not use any longer, else after
                `wait` seconds.
            UnknownVersion: the task has no such version.
        """

        def is_new(adapter: TensorResponse | None) -> bool:
            return bool(known) if adapter is None else adapter.digest not in known

        read = partial(self._adapter, name, version)
        adapter = await self._dependencies.long_poll.until(name, read, is_new, wait=wait, caller=caller)
        if adapter is None:
            raise NothingYet(f"task {name!r} has no adapter to serve now; a version is served once it is evaluated")
        return adapter

    async def _adapter(self, name: str, version: int | None) -> TensorResponse | None:
        async with self._dependencies.database.read_only() as work:
            task = await work.tasks.get(name)
            number = task.served if version is None else version
            if number is None:
                return None
            coefficients = await _coefficients(work, task, number)
            # The served adapter has the newest context vector and head; a version that is named never changes, so it keeps its own.
            context = await work.aggregates.context(name, None if version is None else coefficients.context)
            meta = await _meta(work, task, coefficients, context)
            solve = coefficients.solve if version is None else None
            revision = None if solve is None else await work.heads.revision(name, solve)
            # On Postgres each read sees its own snapshot: an adapter must not be half of before and half of after a change.
            if version is None and (await work.tasks.get(name)).served != number:
                return await self._adapter(name, version)
        head = "" if revision is None else revision.digest
        key = f"adapter:{context.digest}:{coefficients.digest}:{head}:{digest_of(meta.model_dump_json().encode())}"
        body = await self._adapters.get(key)
        self._dependencies.metrics.cache_read(name, hit=body is not None)
        if body is None:
            body = await self._adapter_body(context, coefficients, revision, meta)
            await self._adapters.put(key, body)
        return TensorResponse(body, digest_of(body))

    async def _cached(self, head: Aggregate, kind: str, load: Callable[[], Awaitable[bytes]]) -> bytes:
        cache, metrics, key = self._dependencies.cache, self._dependencies.metrics, f"{kind}:{head.digest}"
        body = await cache.get(key)
        if body is not None and digest_of(body) != head.digest:
            metrics.cache_mismatches.labels(head.task).inc()
            await log.awarning("a body in the cache has another digest and is replaced", task=head.task, kind=kind)
            body = None
        metrics.cache_read(head.task, hit=body is not None)
        if body is None:
            body = await load()
            await cache.put(key, body)
        return body

    async def _context_body(self, head: Aggregate) -> bytes:
        async def load() -> bytes:
            async with self._dependencies.database.read_only() as work:
                return await work.aggregates.context_body(head.task, head.version)

        return await self._cached(head, "context", load)

    async def _coefficients_body(self, head: Aggregate) -> bytes:
        async def load() -> bytes:
            async with self._dependencies.database.read_only() as work:
                return await work.aggregates.coefficients_body(head.task, head.version)

        return await self._cached(head, "coefficients", load)

    async def _adapter_body(
        self, context: Aggregate, coefficients: Aggregate, revision: HeadRevision | None, meta: AdapterMeta
    ) -> bytes:
        vector = read_context(TensorBody.from_bytes(await self._context_body(context)))
        version = TensorBody.from_bytes(await self._coefficients_body(coefficients))
        head = None
        if meta.reading != "words":
            head = read_head(version if revision is None else TensorBody.from_bytes(await self._revision_body(revision)))
        return AdapterBody(vector, read_coefficients(version), meta, head=head).to_bytes()

    async def _revision_body(self, revision: HeadRevision) -> bytes:
        async with self._dependencies.database.read_only() as work:
            return await work.heads.revision_body(revision)


async def _coefficients(work: UnitOfWork, task: Task, version: int | None) -> Aggregate:
    if version is None:
        raise NothingYet(f"task {task.name!r} has no coefficients before its first round closes")
    return await work.aggregates.coefficients(task.name, version)


def _reading(task: Task, coefficients: Aggregate, result: EvaluationResult | None) -> Reading:
    """Return how the labels of a version are read: the way that was evaluated best, else by the head if the version has one."""
    if not task.has_head or coefficients.head is HeadState.NONE:
        return "words"
    return "head" if result is None or result.reading is None else result.reading


def _short(evaluation: Evaluation) -> Evaluation:
    """Return an evaluation as adapters carry it, without what nobody reads there."""
    return evaluation.model_copy(update={"thresholds": None})


async def _meta(work: UnitOfWork, task: Task, coefficients: Aggregate, context: Aggregate) -> AdapterMeta:
    assert task.spec.identity is not None, "a version exists, so a client joined"
    result = dict(await work.rounds.evaluations(task.name)).get(coefficients.version)
    return AdapterMeta(
        task=task.name,
        version=coefficients.version,
        context_version=context.version,
        labels=task.spec.labels,
        template=task.spec.template,
        chat=task.spec.chat,
        identity=task.spec.identity,
        layout=task.spec.layout(task.spec.identity),
        evaluation=None if result is None else _short(messages.evaluation(coefficients.version, result)),
        injection=task.spec.injection,
        reading=_reading(task, coefficients, result),
        head=coefficients.head,
        label_bias=list(result.label_bias) if result is not None and result.label_bias is not None else None,
        abstain_below=task.spec.abstain_below or None,
        created_at=max(coefficients.created_at, context.created_at),
    )
