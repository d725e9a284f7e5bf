"""A client's way through a task: join, ask for the assignment, contribute. Knows no HTTP and no SQL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import structlog

from ifed.errors import (
    FingerprintMismatch,
    IFedError,
    Malformed,
    NotJoined,
    RoundClosed,
    StaleUpdate,
    UnknownRound,
    Withdrawn,
    WrongState,
)
from ifed.messages.bodies import ContextBody, UpdateBody
from ifed.messages.enums import AssignmentKind, RoundKind, RoundState, TaskState
from ifed.messages.rounds import Assignment, ContributionMeta, JoinRequest, Member, Receipt, Withdrawal
from ifed.messages.tasks import TaskSpec
from ifed.tensors.values import digest_of
from services.aggregator.application import messages
from services.aggregator.application.dependencies import Dependencies
from services.aggregator.application.lifecycle import open_next_round, remove_from_open_round
from services.aggregator.domain.contribution import Contribution, ContributionRecord, ContributionSchema
from services.aggregator.domain.round import Round, Seat
from services.aggregator.domain.schedule import assigned, may_add
from services.aggregator.domain.task import Membership, Task
from services.aggregator.runtime.group_commit import GroupCommit
from services.aggregator.storage.database import UnitOfWork

log = structlog.get_logger(__name__)
STORED_AT_ONCE = 32
Reader = Callable[[bytes, str, datetime], Contribution]


@dataclass(frozen=True, slots=True)
class Stored:
    """A contribution that is kept: now, or when it was sent before."""

    round: Round
    receipt: Receipt
    fresh: bool


class Participation:
    """What enrolled clients do."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies
        self._lane = GroupCommit(self._store, most=STORED_AT_ONCE)

    async def join(self, name: str, client: str, request: JoinRequest) -> Member:
        """Take a client into a task, or take its new counts when it joined before.

        Raises:
            FingerprintMismatch: it runs another model than the task.
            ProbeMismatch: it runs the model otherwise than the task's other clients.
            LayoutMismatch: the task's groups or layers do not fit the model.
            Malformed: counts for labels the task does not have, or a probe of another number of layers than the model.
            Withdrawn: it has withdrawn from the task.
        """
        now = self._dependencies.clock()
        async with self._dependencies.database.unit_of_work() as work:
            task = await work.tasks.get(name, for_update=True)
            before = await work.memberships.find(name, client)
            if before is not None:
                refuse_withdrawn(before)
            task.spec = with_identity(task.spec, request)
            joined_at = now if before is None else before.joined_at
            member = Membership(name, client, joined_at, request.label_counts, request.holdout)
            await work.memberships.put(member)
            opened = await open_next_round(work, task, now)
            await work.commit()
        await log.ainfo("joined", task=name, client=client, again=before is not None)
        await self._dependencies.publish(name, opened)
        return messages.member_info(member)

    async def assignment(self, name: str, client: str, *, wait: float) -> Assignment:
        """What the client should do next; held back up to `wait` seconds while that is nothing."""

        async def look() -> Assignment:
            async with self._dependencies.database.read_only() as work:
                return await self._assignment(work, name, client)

        def settled(assignment: Assignment) -> bool:
            return assignment.kind is not AssignmentKind.WAIT

        return await self._dependencies.long_poll.until(name, look, settled, wait=wait)

    async def _assignment(self, work: UnitOfWork, name: str, client: str) -> Assignment:
        task = await work.tasks.get(name)
        member = await work.memberships.find(name, client)
        if member is not None and member.withdrawn_at is not None:
            return messages.assignment(task, AssignmentKind.WITHDRAWN, None, None, client)
        newest = await work.rounds.newest(name)
        seat = None if newest is None else await work.rounds.seat(name, newest.number, client)
        kind = assigned(task, joined=member is not None, newest=newest, seat=seat, now=self._dependencies.clock())
        if may_add(task, kind) and not await work.parts.holds(name, client):
            kind = AssignmentKind.ADDITION
        worked_with = None if newest is None else newest.context
        context = None if worked_with is None else await work.aggregates.context(name, worked_with)
        return messages.assignment(task, kind, newest, context, client)

    async def submit(self, name: str, number: int, client: str, body: bytes, read: Reader) -> Receipt:
        """Keep a contribution; the same bytes again give the same receipt, also after the round closed.

        Raises:
            RoundClosed, StaleUpdate: too late; the detail says what the client's assignment is now.
            AlreadyContributed: the client sent something else to this round before.
            IFedError: whatever makes it no contribution to this round; nothing is stored then.
        """
        contribution = read(body, client, self._dependencies.clock())
        try:
            stored = await self._lane.put((name, number), contribution)
        except (RoundClosed, StaleUpdate) as refusal:
            raise type(refusal)(f"{refusal.detail}; {await self._now(name, client)}") from refusal
        if not stored.fresh:
            self._dependencies.metrics.repeats.labels(name).inc()
            return stored.receipt
        self._count(stored.round, contribution)
        if stored.round.state is not RoundState.OPEN:
            self._dependencies.wake_worker()
        return stored.receipt

    async def _store(self, place: tuple[str, int], contributions: Sequence[Contribution]) -> list[Stored | Exception]:
        """Keep what arrived for one round together, in one transaction; for each what was kept, or why it was not."""
        name, number = place
        async with self._dependencies.database.unit_of_work() as work:
            task = await work.tasks.get(name)
            round_ = await _opened(work, task, number)
            stored = [await self._keep(work, task, round_, contribution) for contribution in contributions]
            if any(isinstance(one, Stored) and one.fresh for one in stored):
                await work.rounds.save(round_)
                await work.commit()
        return stored

    async def _keep(self, work: UnitOfWork, task: Task, round_: Round, contribution: Contribution) -> Stored | Exception:
        try:
            seat, member = await _placed(work, task, round_, contribution.entry.client)
            if (earlier := seat.repeats(contribution)) is not None:
                return Stored(round_, messages.receipt(round_.task, round_.number, earlier), fresh=False)
            round_.accept(contribution, form_of(task.spec, member), self._dependencies.clock())
        except IFedError as refusal:
            return refusal  # nothing of it was written; what came with it is kept
        await work.rounds.record(round_, contribution)
        return Stored(round_, messages.receipt(round_.task, round_.number, contribution.entry), fresh=True)

    async def _now(self, name: str, client: str) -> str:
        async with self._dependencies.database.read_only() as work:
            current = await self._assignment(work, name, client)
        return messages.in_words(current)

    def _count(self, round_: Round, contribution: Contribution) -> None:
        metrics, entry = self._dependencies.metrics, contribution.entry
        metrics.contributions.labels(round_.task, round_.kind.value).inc()
        metrics.contribution_bytes.labels(round_.task).inc(entry.size)
        log.info("contribution", task=round_.task, round=round_.number, client=entry.client, bytes=entry.size)


async def _opened(work: UnitOfWork, task: Task, number: int) -> Round:
    """The round, locked."""
    try:
        return await work.rounds.get(task.name, number, for_update=True)
    except UnknownRound as missing:
        raise RoundClosed(f"{missing.detail}; it was never open") from missing


async def _placed(work: UnitOfWork, task: Task, round_: Round, client: str) -> tuple[Seat, Membership]:
    """The client's seat in the round."""
    member = await work.memberships.find(task.name, client)
    if member is None:
        raise NotJoined(f"{client} has not joined task {task.name!r}")
    refuse_withdrawn(member)
    seat = await work.rounds.seat(task.name, round_.number, client)
    if seat is None:
        raise RoundClosed(f"{round_} opened without {client}, which joined later or was not drawn; another round may ask it")
    return seat, member


def refuse_withdrawn(member: Membership) -> None:
    """Refuse a client that takes part in the task no more."""
    if member.withdrawn_at is not None:
        raise Withdrawn(
            f"{member.client} withdrew from task {member.task!r} at {member.withdrawn_at:%Y-%m-%d %H:%M:%S} UTC; "
            "to come back, let an admin enrol it under another name"
        )


def form_of(spec: TaskSpec, member: Membership) -> ContributionSchema:
    """What this client's contributions to the task look like."""
    assert spec.identity is not None, "nobody joined, so nobody has a seat"
    layout = spec.layout(spec.identity)
    return ContributionSchema(
        fingerprint=spec.identity.fingerprint,
        context_shape=layout.context_shape,
        coefficients_shape=layout.coefficients_shape,
        labels=len(spec.labels),
        holdout=min(member.holdout, spec.policy.max_holdout),
        gradient=spec.policy.mode == "gradient",
        update_dtype=spec.policy.update_dtype,
    )


def with_identity(spec: TaskSpec, request: JoinRequest) -> TaskSpec:
    """The task with the model and the probe of its first client; refuses a client whose model, probe or labels are not the task's."""
    if unknown := sorted(set(request.label_counts) - set(spec.labels)):
        raise Malformed(f"counts for labels this task does not have: {', '.join(unknown[:5])}; its labels are {spec.labels[:20]}")
    if request.probe.layers != request.identity.num_layers:
        raise Malformed(f"a probe of {request.probe.layers} layers for a model of {request.identity.num_layers}")
    if spec.identity is not None:
        _refuse_another(spec, request)
    else:
        spec.layout(request.identity)
    if spec.probe is not None:
        spec.probe.must_agree(request.probe)
    return spec.model_copy(update={"identity": spec.identity or request.identity, "probe": spec.probe or request.probe})


def _refuse_another(spec: TaskSpec, request: JoinRequest) -> None:
    """Refuse another model than the task's; where both were probed, with the layer and the size of the difference."""
    assert spec.identity is not None
    if not spec.identity.agrees_with(request.identity):
        ours, theirs = spec.identity, request.identity
        told = None if spec.probe is None else spec.probe.disagreement(request.probe)
        raise FingerprintMismatch(
            f"this task runs on {ours.name} ({ours.fingerprint}), this client on {theirs.name} ({theirs.fingerprint}); "
            f"weights, configuration and tokenizer must be the same{'' if told is None else f'; {told}'}"
        )


def read_context_body(body: bytes, client: str, now: datetime) -> Contribution:
    """A context vector as a contribution.

    Raises:
        Malformed: not a safetensors body of ours; also LayoutMismatch and NonFinite.
    """
    parsed = ContextBody.from_bytes(body)
    entry = _contribution_record(body, client, now, parsed.meta)
    return Contribution(entry, body, parsed.meta.fingerprint, parsed.meta.version, context=parsed.vector)


def read_update_body(body: bytes, client: str, now: datetime) -> Contribution:
    """An update, or an evaluation alone, as a contribution.

    Raises:
        Malformed: not a safetensors body of ours; also LayoutMismatch and NonFinite.
    """
    parsed = UpdateBody.from_bytes(body)
    correct, evaluated = int(np.trace(parsed.confusion)), int(parsed.confusion.sum())
    entry = _contribution_record(body, client, now, parsed.meta, correct=correct, evaluated=evaluated)
    return Contribution(
        entry,
        body,
        parsed.meta.fingerprint,
        parsed.meta.version,
        coefficients=parsed.coefficients,
        gradient=parsed.gradient,
        change=parsed.change,
        confusion=parsed.confusion,
        label_probabilities=parsed.label_probabilities,
    )


def _contribution_record(
    body: bytes,
    client: str,
    now: datetime,
    meta: ContributionMeta,
    *,
    correct: int | None = None,
    evaluated: int | None = None,
) -> ContributionRecord:
    return ContributionRecord(
        client=client,
        digest=digest_of(body),
        received_at=now,
        weight=meta.examples,
        size=len(body),
        loss=meta.loss,
        seconds=meta.seconds,
        correct=correct,
        evaluated=evaluated,
    )


class Additions:
    """For clients, and for admins who withdraw one."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies

    async def add(self, name: str, client: str, body: bytes) -> Receipt:
        """Keep more of a client's demonstrations, or its first ones if it comes late; the same bytes again give the same receipt.

        Raises:
            NotJoined, Withdrawn: the client takes no part in the task.
            WrongState: the context round has not closed, or the task has failed.
            IFedError: whatever makes it no part of the task's context vector; nothing is stored then.
        """
        contribution = read_context_body(body, client, self._dependencies.clock())
        async with self._dependencies.database.unit_of_work() as work:
            task = await work.tasks.get(name, for_update=True)
            number = await self._checked(work, task, contribution)
            if (earlier := await work.parts.find(name, client, contribution.entry.digest)) is not None:
                self._dependencies.metrics.repeats.labels(name).inc()
                return messages.receipt(name, number, earlier)
            task.context_changes += 1
            await work.parts.add(name, number, task.context_changes, contribution)
            await work.tasks.save(task)
            await work.commit()
        self._dependencies.metrics.contributions.labels(name, RoundKind.CONTEXT.value).inc()
        self._dependencies.metrics.contribution_bytes.labels(name).inc(contribution.entry.size)
        await log.ainfo("addition", task=name, client=client, change=task.context_changes, bytes=contribution.entry.size)
        self._dependencies.wake_worker()
        return messages.receipt(name, number, contribution.entry)

    async def _checked(self, work: UnitOfWork, task: Task, contribution: Contribution) -> int:
        """The number of the context round, if the contribution may follow it."""
        client = contribution.entry.client
        member = await work.memberships.find(task.name, client)
        if member is None:
            raise NotJoined(f"{client} has not joined task {task.name!r}")
        refuse_withdrawn(member)
        task.must_not_be("take additions", TaskState.FAILED)
        if task.version is None:
            raise WrongState(
                f"task {task.name!r} has no context vector to add to before its context round closes; contribute to that"
            )
        contribution.check(RoundKind.CONTEXT, form_of(task.spec, member))
        return (await work.aggregates.context(task.name)).round

    async def withdraw(self, name: str, client: str) -> Withdrawal:
        """Take a client out of a task for good: its parts of the context vector are taken away and it is asked no more.

        What it did to coefficients of rounds that closed stays in them. A second time changes nothing.

        Raises:
            NotJoined: it has no part in the task.
        """
        now = self._dependencies.clock()
        async with self._dependencies.database.unit_of_work() as work:
            task = await work.tasks.get(name, for_update=True)
            member = await work.memberships.find(name, client)
            if member is not None and member.withdrawn_at is not None:
                return Withdrawal(task=name, client=client, withdrawn_at=member.withdrawn_at)
            changed = await remove_from_open_round(work, task, client, now, takes_back=True)
            removed = await work.parts.withdraw(name, client, task.context_changes + 1)
            if member is None and not removed:
                raise NotJoined(f"{client} has no part in task {name!r}")
            task.context_changes += removed > 0
            if member is not None:
                await work.memberships.put(replace(member, withdrawn_at=now))
            await work.tasks.save(task)
            await work.commit()
        await log.ainfo("withdrawn", task=name, client=client, parts=removed)
        await self._dependencies.publish(name, changed)
        return Withdrawal(task=name, client=client, withdrawn_at=now)
