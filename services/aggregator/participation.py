"""A client's way through a task: join, ask for the assignment, contribute. Knows no HTTP and no SQL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog

from ifed.contracts import Assignment, JoinRequest, Member, Receipt
from ifed.errors import FingerprintMismatch, IFedError, Malformed, NotJoined, RoundClosed, StaleUpdate, UnknownRound, Withdrawn
from ifed.states import AssignmentKind, RoundState
from ifed.tasks import TaskSpec
from services.aggregator import views
from services.aggregator.backstage import Backstage
from services.aggregator.contribution import Contribution, Form
from services.aggregator.domain import Round, Seat
from services.aggregator.lane import Lane
from services.aggregator.opening import open_next
from services.aggregator.plan import assigned, may_add
from services.aggregator.ports import Work
from services.aggregator.records import FederatedTask, Membership

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

    def __init__(self, backstage: Backstage) -> None:
        self._backstage = backstage
        self._lane = Lane(self._store, most=STORED_AT_ONCE)

    async def join(self, name: str, client: str, request: JoinRequest) -> Member:
        """Take a client into a task, or take its new counts when it joined before.

        Raises:
            FingerprintMismatch: it runs another model than the task.
            ProbeMismatch: it runs the model otherwise than the task's other clients.
            LayoutMismatch: the task's groups or layers do not fit the model.
            Malformed: counts for labels the task does not have, or a probe of another number of layers than the model.
            Withdrawn: it has withdrawn from the task.
        """
        now = self._backstage.clock()
        async with self._backstage.store.work() as work:
            task = await work.tasks.get(name, for_update=True)
            before = await work.memberships.find(name, client)
            if before is not None:
                refuse_withdrawn(before)
            task.spec = with_identity(task.spec, request)
            joined_at = now if before is None else before.joined_at
            member = Membership(name, client, joined_at, request.label_counts, request.holdout)
            await work.memberships.put(member)
            opened = await open_next(work, task, now)
            await work.commit()
        await log.ainfo("joined", task=name, client=client, again=before is not None)
        await self._backstage.tell(name, opened)
        return views.member_info(member)

    async def assignment(self, name: str, client: str, *, wait: float) -> Assignment:
        """What the client should do next; held back up to `wait` seconds while that is nothing."""

        async def look() -> Assignment:
            async with self._backstage.store.reading() as work:
                return await self._assignment(work, name, client)

        def settled(assignment: Assignment) -> bool:
            return assignment.kind is not AssignmentKind.WAIT

        return await self._backstage.polls.until(name, look, settled, wait=wait)

    async def _assignment(self, work: Work, name: str, client: str) -> Assignment:
        task = await work.tasks.get(name)
        member = await work.memberships.find(name, client)
        if member is not None and member.withdrawn_at is not None:
            return views.assignment(task, AssignmentKind.WITHDRAWN, None, None, client)
        newest = await work.rounds.newest(name)
        seat = None if newest is None else await work.rounds.seat(name, newest.number, client)
        kind = assigned(task, joined=member is not None, newest=newest, seat=seat, now=self._backstage.clock())
        if may_add(task, kind) and not await work.parts.holds(name, client):
            kind = AssignmentKind.ADDITION
        worked_with = None if newest is None else newest.context
        context = None if worked_with is None else await work.aggregates.context(name, worked_with)
        return views.assignment(task, kind, newest, context, client)

    async def submit(self, name: str, number: int, client: str, body: bytes, read: Reader) -> Receipt:
        """Keep a contribution; the same bytes again give the same receipt, also after the round closed.

        Raises:
            RoundClosed, StaleUpdate: too late; the detail says what the client's assignment is now.
            AlreadyContributed: the client sent something else to this round before.
            IFedError: whatever makes it no contribution to this round; nothing is stored then.
        """
        contribution = read(body, client, self._backstage.clock())
        try:
            stored = await self._lane.put((name, number), contribution)
        except (RoundClosed, StaleUpdate) as refusal:
            raise type(refusal)(f"{refusal.detail}; {await self._now(name, client)}") from refusal
        if not stored.fresh:
            self._backstage.metrics.repeats.labels(name).inc()
            return stored.receipt
        self._count(stored.round, contribution)
        if stored.round.state is not RoundState.OPEN:
            self._backstage.nudge()
        return stored.receipt

    async def _store(self, place: tuple[str, int], contributions: Sequence[Contribution]) -> list[Stored | Exception]:
        """Keep what arrived for one round together, in one transaction; for each what was kept, or why it was not."""
        name, number = place
        async with self._backstage.store.work() as work:
            task = await work.tasks.get(name)
            round_ = await _opened(work, task, number)
            stored = [await self._keep(work, task, round_, contribution) for contribution in contributions]
            if any(isinstance(one, Stored) and one.fresh for one in stored):
                await work.rounds.save(round_)
                await work.commit()
        return stored

    async def _keep(self, work: Work, task: FederatedTask, round_: Round, contribution: Contribution) -> Stored | Exception:
        try:
            seat, member = await _placed(work, task, round_, contribution.entry.client)
            if (earlier := seat.repeats(contribution)) is not None:
                return Stored(round_, views.receipt(round_.task, round_.number, earlier), fresh=False)
            round_.accept(contribution, form_of(task.spec, member), self._backstage.clock())
        except IFedError as refusal:
            return refusal  # nothing of it was written; what came with it is kept
        await work.rounds.record(round_, contribution)
        return Stored(round_, views.receipt(round_.task, round_.number, contribution.entry), fresh=True)

    async def _now(self, name: str, client: str) -> str:
        async with self._backstage.store.reading() as work:
            current = await self._assignment(work, name, client)
        return views.in_words(current)

    def _count(self, round_: Round, contribution: Contribution) -> None:
        metrics, entry = self._backstage.metrics, contribution.entry
        metrics.contributions.labels(round_.task, round_.kind.value).inc()
        metrics.contribution_bytes.labels(round_.task).inc(entry.size)
        log.info("contribution", task=round_.task, round=round_.number, client=entry.client, bytes=entry.size)


async def _opened(work: Work, task: FederatedTask, number: int) -> Round:
    """The round, locked."""
    try:
        return await work.rounds.get(task.name, number, for_update=True)
    except UnknownRound as missing:
        raise RoundClosed(f"{missing.detail}; it was never open") from missing


async def _placed(work: Work, task: FederatedTask, round_: Round, client: str) -> tuple[Seat, Membership]:
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


def form_of(spec: TaskSpec, member: Membership) -> Form:
    """What this client's contributions to the task look like."""
    assert spec.identity is not None, "nobody joined, so nobody has a seat"
    layout = spec.layout(spec.identity)
    return Form(
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
