"""Rounds and their ledger: what admins see, when they intervene, and the proof that an aggregate is what its contributions give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import structlog

from ifed.errors import Malformed, WrongState
from ifed.messages.enums import RoundKind, RoundState
from ifed.messages.rounds import ContextInfo, LedgerEntry, Page, Replay, RoundInfo
from ifed.tensors.values import digest_of
from services.aggregator.aggregation.accumulators import AggregationResult
from services.aggregator.application import messages
from services.aggregator.application.dependencies import Dependencies
from services.aggregator.application.worker import aggregate_context, aggregate_round
from services.aggregator.domain.aggregates import Aggregate, ContextPart, LedgerLine
from services.aggregator.domain.evaluation import EvaluationResult
from services.aggregator.domain.round import Round, Seat
from services.aggregator.domain.task import Task
from services.aggregator.storage.database import UnitOfWork

log = structlog.get_logger(__name__)


class RoundService:
    """List rounds, and close, extend or cancel an open one."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies

    async def page(self, task: str, after: int, limit: int) -> Page[RoundInfo]:
        """Return up to `limit` rounds by number, those after `after`.

        Raises:
            UnknownTask: there is no task of this name.
        """
        async with self._dependencies.database.read_only() as work:
            await work.tasks.get(task)
            rounds = await work.rounds.page(task, after, limit + 1)
            seats = await work.rounds.seats(task, [round_.number for round_ in rounds])
        infos = [info for round_ in rounds[:limit] if (info := _readable_info(round_, seats[round_.number])) is not None]
        return Page(items=infos, next=str(rounds[limit - 1].number) if len(rounds) > limit else None)

    async def get(self, task: str, number: int) -> RoundInfo:
        """Return a round.

        Raises:
            UnknownTask: there is no task of this name.
            UnknownRound: the task has no such round.
        """
        async with self._dependencies.database.read_only() as work:
            labels = (await work.tasks.get(task)).spec.labels
            return await round_info(work, await work.rounds.get(task, number), labels)

    async def close(self, task: str, number: int) -> RoundInfo:
        """End an open round now, with or without a quorum.

        Raises:
            WrongState: the round is not open, or has no contributions.
        """
        return await self._change(task, number, lambda _task, round_: round_.close_now())

    async def extend(self, task: str, number: int, seconds: float) -> RoundInfo:
        """Move the deadline of an open round.

        Raises:
            WrongState: the round is not open.
        """
        return await self._change(task, number, lambda _task, round_: round_.extend(seconds))

    async def cancel(self, task: str, number: int) -> RoundInfo:
        """Cancel an open round. The task pauses; resuming it opens a new round for the same step.

        Raises:
            WrongState: the round is not open.
        """

        def cancel(task: Task, round_: Round) -> None:
            round_.cancel(self._dependencies.clock())
            task.hold(f"{round_} was cancelled; resume opens a new one")

        return await self._change(task, number, cancel)

    async def _change(self, name: str, number: int, change: Callable[[Task, Round], None]) -> RoundInfo:
        async with self._dependencies.database.unit_of_work() as work:
            task = await work.tasks.get(name, for_update=True)
            round_ = await work.rounds.get(name, number, for_update=True)
            state = round_.state
            change(task, round_)
            await work.rounds.save(round_)
            await work.tasks.save(task)
            await work.commit()
        await log.ainfo("round changed", task=name, round=number, state=round_.state.value)
        await self._dependencies.publish(name, round_ if round_.state is not state else None)
        return await self.get(name, number)


def _readable_info(round_: Round, seats: Sequence[Seat]) -> RoundInfo | None:
    """Return a round as admins see it; None, with a record in the log, for one of which no message can be made."""
    try:
        return messages.round_info(round_, seats)
    except (ValueError, ArithmeticError):
        log.exception("a round cannot be shown and is left out of the list", task=round_.task, round=round_.number)
        return None


async def round_info(work: UnitOfWork, round_: Round, labels: Sequence[str] = ()) -> RoundInfo:
    """Return a round with its participants, as admins see it, and with the results of these labels."""
    seats = await work.rounds.seats(round_.task, [round_.number])
    return messages.round_info(round_, seats[round_.number], labels)


class Ledger:
    """The record of every contribution, from which each aggregate can be computed again."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies

    async def page(self, task: str, after: str, limit: int) -> Page[LedgerEntry]:
        """Return up to `limit` contributions in the order of round, client and change.

        Args:
            after: `round/client/change` of the last entry of the page before; `0/` for the first page.
        """
        number, client, change = f"{after}/0".split("/")[:3]
        async with self._dependencies.database.read_only() as work:
            await work.tasks.get(task)
            lines = await work.rounds.ledger(task, (int(number), client, int(change)), limit + 1)
        entries = [_entry(line) for line in lines]
        return messages.page(entries, limit, lambda entry: f"{entry.round}/{entry.client}/{entry.change}")

    async def contexts(self, task: str, after: int, limit: int) -> Page[ContextInfo]:
        """Return up to `limit` versions of the context vector, those after `after`."""
        async with self._dependencies.database.read_only() as work:
            await work.tasks.get(task)
            aggregates = await work.aggregates.contexts(task, after, limit + 1)
        infos = [messages.context_info(aggregate) for aggregate in aggregates]
        return messages.page(infos, limit, lambda info: str(info.version))

    async def replay(self, task: str, number: int) -> Replay:
        """Aggregate the contributions to a closed round again and compare the result with the stored one.

        Raises:
            UnknownRound: the task has no such round.
            WrongState: the round has not closed.
        """
        async with self._dependencies.database.read_only() as work:
            await work.tasks.get(task)
            round_ = await work.rounds.get(task, number)
            if round_.state is not RoundState.CLOSED:
                raise WrongState(f"{round_} is {round_.state}; only what a closed round made can be replayed")
            if round_.kind is RoundKind.CONTEXT:
                return await self.replay_context(task, 1)
            seats = (await work.rounds.seats(task, [number]))[number]
            stored = await _stored_aggregate(work, round_)
            asked_next = await work.heads.asked_after(task, number) if round_.kind is RoundKind.HEAD else None
        digests: list[str] = []
        try:
            result = await aggregate_round(self._dependencies.database, round_, lambda body: digests.append(digest_of(body)))
        except Malformed:
            if round_.solve is None:
                raise
            async with self._dependencies.database.read_only() as work:
                deleted = await work.heads.deleted(task, round_.solve, number)
            if not deleted:
                raise
            return _unproven(round_, stored, deleted)
        entries = [seat.entry for seat in seats if seat.entry is not None]
        altered = [entry.client for entry, digest in zip(entries, digests, strict=True) if entry.digest != digest]
        replayed = _replay(round_, stored, result, altered, contributions=len(entries))
        return replayed.model_copy(update={"proven": replayed.proven and asked_next == result.next_question})

    async def replay_context(self, task: str, version: int) -> Replay:
        """Aggregate one version of the context vector again, from the ledger as it was then, and compare.

        Raises:
            NothingYet: the task has no context vector.
            UnknownVersion: it has no such version.
        """
        async with self._dependencies.database.read_only() as work:
            await work.tasks.get(task)
            await work.aggregates.context(task)
            stored = await work.aggregates.context(task, version)
            stored = _with_actual_digest(stored, await work.aggregates.context_body(task, version))
        intact: list[tuple[str, bool]] = []

        def compare(part: ContextPart) -> None:
            intact.append((part.client, part.digest == digest_of(part.body)))

        try:
            result = await aggregate_context(self._dependencies.database, task, stored.round, stored.changes, compare)
        except Malformed:
            async with self._dependencies.database.read_only() as work:
                deleted = await work.parts.deleted(task, stored.round, stored.changes)
            if not deleted:
                raise
            async with self._dependencies.database.read_only() as work:
                return _unproven(await work.rounds.get(task, stored.round), stored, deleted)
        assert result.body is not None, "the stored version was made of the same parts"
        replayed = digest_of(result.body)
        altered = sorted({client for client, unchanged in intact if not unchanged})
        return Replay(
            round=stored.round,
            kind=RoundKind.CONTEXT,
            contributions=len(intact),
            version=version,
            stored=stored.digest,
            replayed=replayed,
            altered=altered,
            proven=not altered and stored.digest == replayed,
        )


def _unproven(round_: Round, stored: Aggregate | None, deleted: list[str]) -> Replay:
    return Replay(
        round=round_.number,
        kind=round_.kind,
        contributions=0,
        version=None if stored is None else stored.version,
        stored=None if stored is None else stored.digest,
        altered=[],
        deleted=deleted,
        proven=False,
    )


def _replay(
    round_: Round, aggregate: Aggregate | None, result: AggregationResult, altered: Sequence[str], *, contributions: int
) -> Replay:
    stored = None if aggregate is None else aggregate.digest
    replayed = None if result.body is None else digest_of(result.body)
    return Replay(
        round=round_.number,
        kind=round_.kind,
        contributions=contributions,
        version=None if aggregate is None else aggregate.version,
        stored=stored,
        replayed=replayed,
        altered=list(altered),
        proven=not altered and stored == replayed and _same_evaluation(round_.evaluation, result.evaluation),
    )


def _same_evaluation(stored: EvaluationResult | None, replayed: EvaluationResult | None) -> bool:
    if stored is None or replayed is None:
        return stored is replayed
    return replayed.confirms(stored)


async def _stored_aggregate(work: UnitOfWork, round_: Round) -> Aggregate | None:
    """Return the aggregate that a closed round made, with the digest of the bytes that are stored now."""
    if round_.kind is RoundKind.EVALUATION or (round_.kind is RoundKind.HEAD and round_.produced is None):
        return None
    assert round_.produced is not None, "a calibration round closes with a version"
    aggregate = await work.aggregates.coefficients(round_.task, round_.produced)
    return _with_actual_digest(aggregate, await work.aggregates.coefficients_body(round_.task, round_.produced))


def _with_actual_digest(aggregate: Aggregate, body: bytes) -> Aggregate:
    return replace(aggregate, digest=digest_of(body))


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
