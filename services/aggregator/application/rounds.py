"""What a task went through: its ledger, the proof of an aggregate, the way back to an earlier version. Knows no HTTP and no SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import structlog

from ifed.errors import WrongState
from ifed.messages.enums import RoundKind, RoundState
from ifed.messages.rounds import ContextInfo, LedgerEntry, Page, Replay, TaskInfo
from ifed.tensors.values import digest_of
from services.aggregator.aggregation.accumulators import AggregationResult
from services.aggregator.application import messages
from services.aggregator.application.dependencies import Dependencies
from services.aggregator.application.lifecycle import may_serve
from services.aggregator.application.tasks import task_info
from services.aggregator.application.worker import sum_context, sum_up
from services.aggregator.domain.aggregates import Aggregate, ContextPart, LedgerLine
from services.aggregator.domain.round import Round
from services.aggregator.storage.database import UnitOfWork

log = structlog.get_logger(__name__)


class Ledger:
    """For admins who want to know what an aggregate was made of, or undo one."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies

    async def rollback(self, name: str, version: int) -> TaskInfo:
        """Serve an earlier version now and go on from it; the versions after it stay to be read and count no more.

        A round that is open starts from what is gone back from, so it is cancelled, and a running task pauses.

        Raises:
            UnknownVersion: no such version.
            WrongState: a round is being aggregated right now; try again.
        """
        now = self._dependencies.clock()
        async with self._dependencies.database.unit_of_work() as work:
            task = await work.tasks.get(name, for_update=True)
            head = await work.aggregates.coefficients(name, version)
            newest = await work.rounds.newest(name, for_update=True)
            cancelled = newest if newest is not None and newest.live else None
            if cancelled is not None:
                cancelled.cancel(now)
                await work.rounds.save(cancelled)
            await work.aggregates.withdraw_after(name, version, now)
            task.roll_back(version, head.calibrated)
            if not await may_serve(work, task):
                task.served = None
            await work.tasks.save(task)
            await work.commit()
        await log.ainfo("rolled back", task=name, version=version)
        await self._dependencies.publish(name, cancelled)
        async with self._dependencies.database.read_only() as work:
            return await task_info(work, await work.tasks.get(name))

    async def ledger(self, name: str, after: tuple[int, str, int], limit: int) -> Page[LedgerEntry]:
        """Every contribution by round, client and change."""
        async with self._dependencies.database.read_only() as work:
            await work.tasks.get(name)
            found = await work.rounds.ledger(name, after, limit + 1)
        entries = [_entry(line) for line in found]
        return messages.page(entries, limit, lambda entry: f"{entry.round}/{entry.client}/{entry.change}")

    async def replay(self, name: str, number: int) -> Replay:
        """Sum a closed round up again from the stored contributions; UnknownRound, WrongState while it has not closed."""
        async with self._dependencies.database.read_only() as work:
            await work.tasks.get(name)
            round_ = await work.rounds.get(name, number)
            if round_.state is not RoundState.CLOSED:
                raise WrongState(f"{round_} is {round_.state}; only what a closed round made can be replayed")
            if round_.kind is RoundKind.CONTEXT:
                return await self.replay_context(name, 1)
            seats = (await work.rounds.seats(name, [number]))[number]
            head = await _made(work, round_)
        digests: list[str] = []
        summed = await sum_up(self._dependencies.database, round_, lambda body: digests.append(digest_of(body)))
        kept = [seat.entry for seat in seats if seat.entry is not None]
        altered = [entry.client for entry, digest in zip(kept, digests, strict=True) if entry.digest != digest]
        return _replay(round_, head, summed, altered, contributions=len(kept))

    async def contexts(self, name: str, after: int, limit: int) -> Page[ContextInfo]:
        """The versions of the context vector."""
        async with self._dependencies.database.read_only() as work:
            await work.tasks.get(name)
            found = await work.aggregates.contexts(name, after, limit + 1)
        return messages.page([messages.context_info(head) for head in found], limit, lambda one: str(one.version))

    async def replay_context(self, name: str, version: int) -> Replay:
        """Sum one version of the context vector up again from the ledger, as it stood for it; NothingYet, UnknownVersion."""
        async with self._dependencies.database.read_only() as work:
            await work.tasks.get(name)
            await work.aggregates.context(name)
            head = await work.aggregates.context(name, version)
            head = _as_kept(head, await work.aggregates.context_body(name, version))
        parts: list[tuple[str, bool]] = []

        def seen(part: ContextPart) -> None:
            parts.append((part.client, part.digest == digest_of(part.body)))

        summed = await sum_context(self._dependencies.database, name, head.round, head.changes, seen)
        assert summed.body is not None, "parts that were summed up once are a vector"
        replayed = digest_of(summed.body)
        altered = sorted({client for client, as_sent in parts if not as_sent})
        return Replay(
            round=head.round,
            kind=RoundKind.CONTEXT,
            contributions=len(parts),
            version=version,
            stored=head.digest,
            replayed=replayed,
            altered=altered,
            proven=not altered and head.digest == replayed,
        )


def _replay(
    round_: Round, head: Aggregate | None, summed: AggregationResult, altered: Sequence[str], *, contributions: int
) -> Replay:
    stored = None if head is None else head.digest
    replayed = None if summed.body is None else digest_of(summed.body)
    return Replay(
        round=round_.number,
        kind=round_.kind,
        contributions=contributions,
        version=None if head is None else head.version,
        stored=stored,
        replayed=replayed,
        altered=list(altered),
        proven=not altered and stored == replayed and summed.evaluation == round_.evaluation,
    )


async def _made(work: UnitOfWork, round_: Round) -> Aggregate | None:
    """The aggregate a closed round made, as it is kept, with the digest of the bytes that are there now."""
    if round_.kind is RoundKind.EVALUATION:
        return None
    assert round_.produced is not None, "a calibration round closes with a version"
    head = await work.aggregates.coefficients(round_.task, round_.produced)
    return _as_kept(head, await work.aggregates.coefficients_body(round_.task, round_.produced))


def _as_kept(head: Aggregate, body: bytes) -> Aggregate:
    return replace(head, digest=digest_of(body))


def _entry(line: LedgerLine) -> LedgerEntry:
    return LedgerEntry(
        round=line.round,
        kind=line.kind,
        state=line.state,
        client=line.entry.client,
        change=line.change,
        withdrawn=line.removed is not None,
        digest=line.entry.digest,
        received_at=line.entry.received_at,
        examples=line.entry.weight,
        bytes=line.entry.size,
    )
