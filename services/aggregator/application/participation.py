"""What enrolled clients do: join a task, ask for an assignment, contribute, add to the context vector, withdraw."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import structlog

from ifed.errors import (
    FingerprintMismatch,
    IFedError,
    Malformed,
    NotJoined,
    QuotaExceeded,
    RoundClosed,
    StaleUpdate,
    UnknownRound,
    UnknownTask,
    Withdrawn,
    WrongState,
)
from ifed.messages.bodies import ContextBody, HeadBody, HeadQuery, UpdateBody
from ifed.messages.enums import AssignmentKind, RoundKind, RoundState, TaskState
from ifed.messages.rounds import Assignment, ContributionMeta, JoinRequest, Member, Receipt, Withdrawal
from ifed.messages.tasks import ModelIdentity, TaskSpec
from ifed.tensors.limits import check_contribution_body
from ifed.tensors.values import digest_of
from services.aggregator.application import messages
from services.aggregator.application.adapters import TensorResponse
from services.aggregator.application.dependencies import Dependencies
from services.aggregator.application.lifecycle import open_next_round, remove_from_open_round
from services.aggregator.domain.contribution import Contribution, ContributionRecord, ContributionSchema
from services.aggregator.domain.round import Round, Seat
from services.aggregator.domain.schedule import assigned, may_add
from services.aggregator.domain.task import Membership, Task
from services.aggregator.runtime.group_commit import GroupCommit
from services.aggregator.runtime.long_poll import NOBODY, Caller
from services.aggregator.storage.database import UnitOfWork

log = structlog.get_logger(__name__)
MOST_NAMED = 20  # tasks in a refusal
LARGEST_GROUP = 32  # contributions to one round that are stored in one transaction


@dataclass(frozen=True, slots=True)
class StoredContribution:
    """A contribution that is stored, by this request or by an earlier one.

    Attributes:
        round: the round after it.
        is_new: whether this request stored it.
    """

    round: Round
    receipt: Receipt
    is_new: bool


class Participation:
    """Everything a client does in a task."""

    def __init__(self, dependencies: Dependencies, *, max_additions: int) -> None:
        self._dependencies, self._max_additions = dependencies, max_additions
        self._group_commit = GroupCommit(self._store, most=LARGEST_GROUP)

    async def join(self, name: str, client: str, request: JoinRequest) -> Member:
        """Join a task, or replace the example counts of a client that has joined before.

        Raises:
            FingerprintMismatch: the client runs another model than the task.
            ProbeMismatch: its model computes something else than that of the task's other clients.
            LayoutMismatch: the task's groups or layers do not fit the model.
            Malformed: counts for labels the task does not have, or a probe of another number of layers than the model.
            Withdrawn: the client has withdrawn from the task.
        """
        now = self._dependencies.clock()
        async with self._dependencies.database.unit_of_work() as work:
            task = await work.tasks.get(name, for_update=True)
            earlier = await work.memberships.find(name, client)
            if earlier is not None:
                check_not_withdrawn(earlier)
            task.spec = spec_after_join(task.spec, request)
            joined_at = now if earlier is None else earlier.joined_at
            member = Membership(name, client, joined_at, request.label_counts, request.holdout)
            await work.memberships.put(member)
            opened = await open_next_round(work, task, now)
            await work.commit()
        await log.ainfo("client joined", task=name, client=client, again=earlier is not None)
        await self._dependencies.publish(name, opened)
        return messages.member_info(member)

    async def assignment(self, name: str, client: str, *, wait: float, caller: Caller = NOBODY) -> Assignment:
        """Return what the client should do next; wait up to `wait` seconds while that is nothing."""

        async def read() -> Assignment:
            async with self._dependencies.database.read_only() as work:
                return await self._assignment(work, name, client)

        def is_work(assignment: Assignment) -> bool:
            return assignment.kind is not AssignmentKind.WAIT

        return await self._dependencies.long_poll.until(name, read, is_work, wait=wait, caller=caller)

    async def _assignment(self, work: UnitOfWork, name: str, client: str) -> Assignment:
        try:
            task = await work.tasks.get(name)
        except UnknownTask as missing:
            raise UnknownTask(f"{missing.detail}; {await _tasks_that_exist(work)}") from missing
        member = await work.memberships.find(name, client)
        if member is not None and member.withdrawn_at is not None:
            return messages.assignment(task, AssignmentKind.WITHDRAWN, None, None, client)
        newest = await work.rounds.newest(name)
        seat = None if newest is None else await work.rounds.seat(name, newest.number, client)
        kind = assigned(task, joined=member is not None, newest=newest, seat=seat, now=self._dependencies.clock())
        if may_add(task, kind) and not await work.parts.holds(name, client):
            kind = AssignmentKind.ADDITION
        version = None if newest is None else newest.context
        context = None if version is None else await work.aggregates.context(name, version)
        return messages.assignment(task, kind, newest, context, client)

    async def submit_context(self, name: str, number: int, client: str, body: bytes) -> Receipt:
        """Store a context vector for an open context round. The same bytes again give the same receipt.

        Raises:
            RoundClosed: the round is not open; the detail gives the client's current assignment.
            AlreadyContributed: the client has sent another contribution to this round.
            IFedError: any other reason why the round cannot take it; nothing is stored.
        """
        contribution = await asyncio.to_thread(read_context_body, body, client, self._dependencies.clock())
        return await self._submit(name, number, contribution)

    async def submit_update(self, name: str, number: int, client: str, body: bytes) -> Receipt:
        """Store an update for an open calibration or evaluation round. The same bytes again give the same receipt.

        Raises:
            RoundClosed: the round is not open; the detail gives the client's current assignment.
            StaleUpdate: the update starts from another version than the round; the detail gives the current assignment.
            AlreadyContributed: the client has sent another contribution to this round.
            IFedError: any other reason why the round cannot take it; nothing is stored.
        """
        contribution = await asyncio.to_thread(read_update_body, body, client, self._dependencies.clock())
        return await self._submit(name, number, contribution)

    async def submit_head(self, name: str, number: int, client: str, body: bytes) -> Receipt:
        """Store an answer to the question of an open head round. The same bytes again give the same receipt.

        Raises:
            RoundClosed: the round is not open; the detail gives the client's current assignment.
            StaleUpdate: the answer is for another version than the round's; the detail gives the current assignment.
            AlreadyContributed: the client has sent another answer to this round.
            IFedError: any other reason why the round cannot take it; nothing is stored.
        """
        return await self._submit(name, number, read_head_body(body, client, self._dependencies.clock()))

    async def query(self, name: str, number: int) -> TensorResponse:
        """Return what a head round asks.

        Raises:
            UnknownRound: the task has no head round of this number.
        """
        async with self._dependencies.database.read_only() as work:
            await work.tasks.get(name)
            body = await work.heads.query(name, number)
        return TensorResponse(body, digest_of(body))

    async def _submit(self, name: str, number: int, contribution: Contribution) -> Receipt:
        try:
            stored = await self._group_commit.put((name, number), contribution)
        except (RoundClosed, StaleUpdate) as refusal:
            assignment = await self._assignment_in_words(name, contribution.entry.client)
            raise type(refusal)(f"{refusal.detail}; {assignment}") from refusal
        if not stored.is_new:
            self._dependencies.metrics.repeats.labels(name).inc()
            return stored.receipt
        self._count(name, stored.round.kind, contribution)
        log.info("contribution", task=name, round=number, client=contribution.entry.client, bytes=contribution.entry.size)
        if stored.round.state is not RoundState.OPEN:
            self._dependencies.wake_worker()
        return stored.receipt

    async def _store(self, key: tuple[str, int], contributions: Sequence[Contribution]) -> list[StoredContribution | Exception]:
        """Store contributions that arrived together for one round; return for each what was stored, or why not."""
        name, number = key
        async with self._dependencies.database.unit_of_work() as work:
            task = await work.tasks.get(name)
            round_ = await _lock_round(work, task, number)
            query = HeadQuery.from_bytes(await work.heads.query(name, number)) if round_.kind is RoundKind.HEAD else None
            outcomes = [await self._accept(work, task, round_, contribution, query) for contribution in contributions]
            if any(isinstance(outcome, StoredContribution) and outcome.is_new for outcome in outcomes):
                await work.rounds.save(round_)
                await work.commit()
        return outcomes

    async def _accept(
        self, work: UnitOfWork, task: Task, round_: Round, contribution: Contribution, query: HeadQuery | None
    ) -> StoredContribution | Exception:
        try:
            seat, member = await _participant(work, task, round_, contribution.entry.client)
            if (earlier := seat.repeats(contribution)) is not None:
                return StoredContribution(round_, messages.receipt(round_.task, round_.number, earlier), is_new=False)
            schema = contribution_schema(task.spec, member)
            if query is not None:
                schema = with_question(schema, round_, query)
            round_.accept(contribution, schema, self._dependencies.clock())
        except IFedError as refusal:
            return refusal  # nothing of it was written, so the others of the group can be committed
        await work.rounds.record(round_, contribution)
        return StoredContribution(round_, messages.receipt(round_.task, round_.number, contribution.entry), is_new=True)

    async def _assignment_in_words(self, name: str, client: str) -> str:
        async with self._dependencies.database.read_only() as work:
            return messages.in_words(await self._assignment(work, name, client))

    def _count(self, task: str, kind: RoundKind, contribution: Contribution) -> None:
        self._dependencies.metrics.contributions.labels(task, kind.value).inc()
        self._dependencies.metrics.contribution_bytes.labels(task).inc(contribution.entry.size)

    async def add(self, name: str, client: str, body: bytes) -> Receipt:
        """Store a context vector of further demonstrations, or the first one of a late joiner.

        The same bytes again give the same receipt.

        Raises:
            NotJoined, Withdrawn: the client does not take part in the task.
            WrongState: the context round has not closed, or the task has failed.
            QuotaExceeded: the client has sent as many additions as it may.
            IFedError: any other reason why the task cannot take it; nothing is stored.
        """
        contribution = await asyncio.to_thread(read_context_body, body, client, self._dependencies.clock())
        async with self._dependencies.database.unit_of_work() as work:
            task = await work.tasks.get(name, for_update=True)
            number = await _check_addition(work, task, contribution)
            if (earlier := await work.parts.find(name, client, contribution.entry.digest)) is not None:
                self._dependencies.metrics.repeats.labels(name).inc()
                return messages.receipt(name, number, earlier)
            if await work.parts.additions(name, number, client) >= self._max_additions:
                raise QuotaExceeded(
                    f"{client} has sent {self._max_additions} additions to task {name!r}, as many as one client may"
                )
            task.context_changes += 1
            await work.parts.add(name, number, task.context_changes, contribution)
            await work.tasks.save(task)
            await work.commit()
        self._count(name, RoundKind.CONTEXT, contribution)
        await log.ainfo("addition", task=name, client=client, change=task.context_changes, bytes=contribution.entry.size)
        self._dependencies.wake_worker()
        return messages.receipt(name, number, contribution.entry)

    async def withdraw(self, name: str, client: str) -> Withdrawal:
        """Withdraw a client permanently: its context vectors and its answers for label heads no longer count, and it gets no more work.

        Its effect on the coefficients of closed rounds remains. Withdrawing again changes nothing.

        Raises:
            NotJoined: the client has no part in the task.
        """
        now = self._dependencies.clock()
        async with self._dependencies.database.unit_of_work() as work:
            task = await work.tasks.get(name, for_update=True)
            member = await work.memberships.find(name, client)
            if member is not None and member.withdrawn_at is not None:
                return Withdrawal(task=name, client=client, withdrawn_at=member.withdrawn_at)
            changed = await remove_from_open_round(work, task, client, now, drop_contribution=True)
            change = task.context_changes + 1
            parts = await work.parts.withdraw(name, client, change) + await work.heads.withdraw(name, client, change)
            if member is None and not parts:
                raise NotJoined(f"{client} has no part in task {name!r}")
            task.context_changes += parts > 0
            if member is not None:
                await work.memberships.put(replace(member, withdrawn_at=now))
            await work.tasks.save(task)
            await work.commit()
        await log.ainfo("client withdrawn", task=name, client=client, parts=parts)
        await self._dependencies.publish(name, changed)
        return Withdrawal(task=name, client=client, withdrawn_at=now)


async def _lock_round(work: UnitOfWork, task: Task, number: int) -> Round:
    try:
        return await work.rounds.get(task.name, number, for_update=True)
    except UnknownRound as missing:
        raise RoundClosed(f"{missing.detail}; it was never open") from missing


async def _participant(work: UnitOfWork, task: Task, round_: Round, client: str) -> tuple[Seat, Membership]:
    """Return the client's seat in the round, and its membership; raise when it may not contribute."""
    member = await _member(work, task, client)
    seat = await work.rounds.seat(task.name, round_.number, client)
    if seat is None:
        raise RoundClosed(f"{round_} opened without {client}, which joined later or was not drawn; another round may ask it")
    return seat, member


async def _check_addition(work: UnitOfWork, task: Task, contribution: Contribution) -> int:
    """Return the number of the context round; raise when the contribution cannot be added to its aggregate."""
    member = await _member(work, task, contribution.entry.client)
    task.must_not_be("take additions", TaskState.FAILED)
    if task.version is None:
        raise WrongState(f"task {task.name!r} has no context vector to add to before its context round closes; contribute to that")
    contribution.check(RoundKind.CONTEXT, contribution_schema(task.spec, member))
    return (await work.aggregates.context(task.name)).round


async def _member(work: UnitOfWork, task: Task, client: str) -> Membership:
    member = await work.memberships.find(task.name, client)
    if member is None:
        raise NotJoined(f"{client} has not joined task {task.name!r}")
    check_not_withdrawn(member)
    return member


def check_not_withdrawn(member: Membership) -> None:
    """Raise Withdrawn when the client has withdrawn from the task."""
    if member.withdrawn_at is not None:
        raise Withdrawn(
            f"{member.client} was withdrawn from task {member.task!r} at {member.withdrawn_at:%Y-%m-%d %H:%M:%S} UTC; "
            "to come back, let an admin enrol it under another name"
        )


def contribution_schema(spec: TaskSpec, member: Membership) -> ContributionSchema:
    """Return what the contributions of this client to the task must conform to."""
    assert spec.identity is not None, "the client has joined, so the model is known"
    layout = spec.layout(spec.identity)
    return ContributionSchema(
        fingerprint=spec.identity.fingerprint,
        context_shape=layout.context_shape,
        coefficients_shape=layout.coefficients_shape,
        labels=len(spec.labels),
        holdout=min(member.holdout, spec.policy.max_holdout),
        gradient=spec.policy.mode == "gradient",
        update_dtype=spec.policy.update_dtype,
        has_head=spec.head != "words",
    )


def with_question(schema: ContributionSchema, round_: Round, query: HeadQuery) -> ContributionSchema:
    """Return what the answers to a head round must conform to."""
    candidates, temperatures = query.candidates, query.temperatures
    return replace(
        schema,
        question=round_.question,
        directions=0 if query.directions is None else len(query.directions),
        likelihoods=(0, 0) if candidates is None or temperatures is None else (len(candidates), len(temperatures)),
    )


def spec_after_join(spec: TaskSpec, request: JoinRequest) -> TaskSpec:
    """Return the task with the identity and the probe of the model, which its first client determines.

    Raises:
        FingerprintMismatch: the client runs another model than the task.
        ProbeMismatch: its model computes something else than that of the task's other clients.
        LayoutMismatch: the task's groups or layers do not fit the model.
        Malformed: counts for labels the task does not have, or a probe of another number of layers than the model.
    """
    if unknown := sorted(set(request.label_counts) - set(spec.labels)):
        raise Malformed(f"counts for labels this task does not have: {', '.join(unknown[:5])}; its labels are {spec.labels[:20]}")
    if request.probe.layers != request.identity.num_layers:
        raise Malformed(f"a probe of {request.probe.layers} layers for a model of {request.identity.num_layers}")
    if spec.identity is None:
        spec.layout(request.identity)
    else:
        _check_identity(spec, spec.identity, request)
    if spec.probe is not None:
        spec.probe.must_agree(request.probe)
    return spec.model_copy(update={"identity": spec.identity or request.identity, "probe": spec.probe or request.probe})


def _check_identity(spec: TaskSpec, expected: ModelIdentity, request: JoinRequest) -> None:
    """Raise FingerprintMismatch for another model; where both were probed, with the layer and the size of the difference."""
    actual = request.identity
    if not expected.agrees_with(actual):
        difference = None if spec.probe is None else spec.probe.disagreement(request.probe)
        raise FingerprintMismatch(
            f"this task runs on {expected.name} ({expected.fingerprint}), this client on {actual.name} ({actual.fingerprint}); "
            f"weights, configuration and tokenizer must be the same{'' if difference is None else f'; {difference}'}"
        )


def read_context_body(body: bytes, client: str, now: datetime) -> Contribution:
    """Parse the body of a context vector into a contribution of `client`, received at `now`.

    Raises:
        Malformed: it is not a safetensors body of this format.
        LayoutMismatch: a tensor is missing, superfluous, or of another dtype or number of axes.
        NonFinite: a value is NaN or infinite.
    """
    parsed = ContextBody.from_bytes(body)
    check_contribution_body(body)
    record = _record(body, client, now, parsed.meta)
    meta = parsed.meta
    return Contribution(record, body, meta.fingerprint, meta.version, context=parsed.vector, standardization=parsed.standardization)


def read_head_body(body: bytes, client: str, now: datetime) -> Contribution:
    """Parse the body of an answer to a head round.

    Raises:
        Malformed: it is not a safetensors body of this format, or a log-likelihood is above 0.
        LayoutMismatch: a tensor is superfluous, or of another dtype or number of axes.
        NonFinite: a value is NaN or infinite.
    """
    parsed = HeadBody.from_bytes(body)
    check_contribution_body(body)
    record = _record(body, client, now, parsed.meta)
    return Contribution(record, body, parsed.meta.fingerprint, parsed.meta.version, head=parsed)


def read_update_body(body: bytes, client: str, now: datetime) -> Contribution:
    """Parse the body of an update, or of an evaluation alone.

    Raises:
        Malformed: it is not a safetensors body of this format.
        LayoutMismatch: a tensor is missing, superfluous, or of another dtype or number of axes.
        NonFinite: a value is NaN or infinite.
    """
    parsed = UpdateBody.from_bytes(body)
    check_contribution_body(body)
    correct, evaluated = int(np.trace(parsed.confusion)), int(parsed.confusion.sum())
    record = replace(_record(body, client, now, parsed.meta), correct=correct, evaluated=evaluated)
    return Contribution(
        record,
        body,
        parsed.meta.fingerprint,
        parsed.meta.version,
        update=parsed.update,
        confusion=parsed.confusion,
        label_probabilities=parsed.label_probabilities,
        others=tuple(parsed.others.values()),
    )


def _record(body: bytes, client: str, now: datetime, meta: ContributionMeta) -> ContributionRecord:
    return ContributionRecord(
        client=client,
        digest=digest_of(body),
        received_at=now,
        weight=meta.examples,
        size=len(body),
        loss=meta.loss,
        seconds=meta.seconds,
    )


async def _tasks_that_exist(work: UnitOfWork) -> str:
    """Name the tasks that a client may join, some of them if they are many."""
    tasks = await work.tasks.page(None, MOST_NAMED)
    names = [repr(task.name) for task in tasks if task.state is not TaskState.FAILED]
    return f"tasks that can be joined: {', '.join(names)}" if names else "no task can be joined now"
