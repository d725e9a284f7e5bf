"""Gives out aggregates: the context vector, coefficients, and the adapter made of both. Knows no HTTP and no SQL."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from ifed.errors import NothingYet
from ifed.messages.bodies import AdapterBody, read_coefficients, read_context
from ifed.messages.rounds import AdapterMeta
from ifed.tensors.values import TensorBody, digest_of
from services.aggregator.application import messages
from services.aggregator.application.dependencies import Dependencies
from services.aggregator.domain.aggregates import Aggregate
from services.aggregator.domain.task import Task
from services.aggregator.storage.database import UnitOfWork


@dataclass(frozen=True, slots=True)
class TensorResponse:
    """A body that carries tensors, and the sha256 that identifies it."""

    body: bytes
    digest: str


class AdapterStore:
    """What readers, clients and admins fetch. Bodies come from the cache under keys that name their digest, else from the truth."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies

    async def context(self, name: str, version: int | None = None) -> TensorResponse:
        """One version of the global context vector, the newest when none is named; NothingYet, UnknownVersion."""
        async with self._dependencies.database.read_only() as work:
            await work.tasks.get(name)
            head = await work.aggregates.context(name, version)
        return await self._kept(name, f"context:{head.digest}", partial(self._context_body, head))

    async def coefficients(self, name: str, version: int | None) -> TensorResponse:
        """One version of the coefficients, the newest when none is named; NothingYet, UnknownVersion."""
        async with self._dependencies.database.read_only() as work:
            task = await work.tasks.get(name)
            head = await _coefficients_body_of(work, task, task.version if version is None else version)
        return await self._kept(name, f"coefficients:{head.digest}", partial(self._coefficients_body, head))

    async def adapter(self, name: str, version: int | None, *, known: frozenset[str], wait: float) -> TensorResponse:
        """The adapter the policy serves, or of one version, held back up to `wait` seconds while its digest is among `known`.

        Raises:
            NothingYet: after `wait` seconds there is still none.
            UnknownVersion: the version named does not exist.
        """

        def settled(seen: TensorResponse | None) -> bool:
            return seen is not None and seen.digest not in known

        seen = await self._dependencies.long_poll.until(name, partial(self._adapter, name, version), settled, wait=wait)
        if seen is None:
            raise NothingYet(f"task {name!r} has no adapter to serve yet; a version is served once it is evaluated")
        return seen

    async def _adapter(self, name: str, version: int | None) -> TensorResponse | None:
        async with self._dependencies.database.read_only() as work:
            task = await work.tasks.get(name)
            wanted = task.served if version is None else version
            if wanted is None:
                return None
            coefficients = await _coefficients_body_of(work, task, wanted)
            # What is served carries the newest context vector; a version that is named never changes, so it keeps its own.
            context = await work.aggregates.context(name, None if version is None else coefficients.context)
            meta = await _meta(work, task, coefficients, context)
            # On Postgres each read sees its own moment: what is put together must not be half of before and half of after a change.
            if version is None and (await work.tasks.get(name)).served != wanted:
                return await self._adapter(name, version)
        # The key is the content: what the adapter says of itself, and the digests of its parts.
        said = digest_of(meta.model_dump_json().encode())
        key = f"adapter:{context.digest}:{coefficients.digest}:{said}"
        return await self._kept(name, key, partial(self._adapter_body, context, coefficients, meta))

    async def _kept(self, task: str, key: str, make: Callable[[], Awaitable[bytes]]) -> TensorResponse:
        body = await self._dependencies.cache.get(key)
        self._dependencies.metrics.cache_read(task, hit=body is not None)
        if body is None:
            body = await make()
            await self._dependencies.cache.put(key, body)
        return TensorResponse(body, digest_of(body))

    async def _context_body(self, head: Aggregate) -> bytes:
        async with self._dependencies.database.read_only() as work:
            return await work.aggregates.context_body(head.task, head.version)

    async def _coefficients_body(self, head: Aggregate) -> bytes:
        async with self._dependencies.database.read_only() as work:
            return await work.aggregates.coefficients_body(head.task, head.version)

    async def _adapter_body(self, context: Aggregate, coefficients: Aggregate, meta: AdapterMeta) -> bytes:
        vector = read_context(TensorBody.from_bytes(await self._context_body(context)))
        values = read_coefficients(TensorBody.from_bytes(await self._coefficients_body(coefficients)))
        return AdapterBody(vector, values, meta).to_bytes()


async def _coefficients_body_of(work: UnitOfWork, task: Task, version: int | None) -> Aggregate:
    if version is None:
        raise NothingYet(f"task {task.name!r} has no coefficients before its first round closes")
    return await work.aggregates.coefficients(task.name, version)


async def _meta(work: UnitOfWork, task: Task, coefficients: Aggregate, context: Aggregate) -> AdapterMeta:
    assert task.spec.identity is not None, "a version exists, so a client joined"
    measures = dict(await work.rounds.evaluations(task.name))
    measure = measures.get(coefficients.version)
    return AdapterMeta(
        task=task.name,
        version=coefficients.version,
        context_version=context.version,
        labels=task.spec.labels,
        template=task.spec.template,
        chat=task.spec.chat,
        identity=task.spec.identity,
        layout=task.spec.layout(task.spec.identity),
        evaluation=None if measure is None else messages.evaluation(coefficients.version, measure),
        label_bias=list(measure.label_bias) if measure is not None and measure.label_bias is not None else None,
        created_at=max(coefficients.created_at, context.created_at),
    )
