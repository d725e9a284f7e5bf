"""What happens between rounds, inside a transaction that has locked the task: opening, promoting, leaving."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from ifed.messages.bodies import HeadQuery
from ifed.messages.enums import HeadQuestion, RoundKind, RoundState, TaskState
from services.aggregator.domain.round import Round
from services.aggregator.domain.schedule import (
    Step,
    attempt_after,
    clients_needed,
    early_end,
    label_shares,
    next_step,
    open_round,
    promoted,
    sample,
    seed_of,
)
from services.aggregator.domain.task import Membership, Task
from services.aggregator.storage.database import UnitOfWork

# No other reason of a task contains these words: what stands before them is kept.
CONTEXT_UNAVAILABLE = "its context vector cannot be made without those who withdrew"


async def open_next_round(work: UnitOfWork, task: Task, now: datetime) -> Round | None:
    """Open the next round of a task, and save the task, which must have been read `for_update`.

    Return the round; None when the task does not run, has a live round, waits for clients, or has now finished.
    """
    opened = None
    newest = await work.rounds.newest(task.name)
    if task.state is TaskState.RUNNING and not (newest is not None and newest.live):
        opened = await _open(work, task, newest, now)
    await work.tasks.save(task)
    return opened


async def _open(work: UnitOfWork, task: Task, newest: Round | None, now: datetime) -> Round | None:
    evaluations = await work.rounds.evaluations(task.name)
    step = next_step(task, newest, evaluations)
    if step is None:
        task.finish(early_end(task))
        await promote(work, task)
        return None
    if task.version is not None and not await may_serve(work, task):
        task.hold(f"{CONTEXT_UNAVAILABLE}; resume it when others have brought theirs")
        return None
    memberships = await work.memberships.of_task(task.name)
    members = [member.client for member in memberships]
    if len(members) < clients_needed(task.spec.policy, newest):
        return None
    number = 1 if newest is None else newest.number + 1
    if step.kind is RoundKind.HEAD:
        return await _open_head_round(work, task, step, number, memberships, now, attempt=attempt_after(task, newest))
    if step.kind is RoundKind.CALIBRATION:
        members = sample(members, task.spec.policy.sampled(len(members)), seed_of(task.name, number))
    context = None if step.kind is RoundKind.CONTEXT else (await work.aggregates.context(task.name)).version
    round_ = open_round(task, step, number, len(members), now, attempt=attempt_after(task, newest), context=context)
    await work.rounds.add(round_, members)
    return round_


async def _open_head_round(
    work: UnitOfWork, task: Task, step: Step, number: int, members: Sequence[Membership], now: datetime, *, attempt: int
) -> Round | None:
    """Open the next round of a solution for those who have answered all of it so far, or the first round of one for every member."""
    assert step.version is not None, "a head is solved for a version"
    pending = await work.heads.next_question(task.name, step.version)
    if pending is None:
        seated = [member.client for member in members]
        question = HeadQuestion.SUMS if task.spec.policy.solver == "sums" else HeadQuestion.MOMENT
        query, solve = HeadQuery(label_shares(task.spec.labels, members)).to_bytes(), number
        context: int | None = (await work.aggregates.context(task.name)).version
    else:
        seated = sorted(set(pending.clients) & {member.client for member in members})
        question, query, solve, context = pending.question, pending.query, pending.solve, pending.context
    if not seated:
        task.hold("every client that answered for its label head has left; roll it back to an earlier version, and resume it")
        return None
    round_ = open_round(task, step, number, len(seated), now, attempt=attempt, context=context)
    round_.question, round_.solve = question, solve
    await work.rounds.add(round_, seated)
    await work.heads.add(task.name, number, query)
    return round_


async def promote(work: UnitOfWork, task: Task) -> None:
    """Serve the version that the policy chooses, or none when the context vector is unavailable."""
    task.served = promoted(task, await work.rounds.evaluations(task.name)) if await may_serve(work, task) else None


async def may_serve(work: UnitOfWork, task: Task) -> bool:
    """Return whether the newest context vector reflects every settled change.

    It does not when no vector could be made from the remaining clients: the newest one then contains what somebody has withdrawn.
    """
    return (await work.aggregates.context(task.name)).changes >= task.context_settled


def other_reason(reason: str | None) -> str | None:
    """Return the part of a task's reason that is not about an unavailable context vector, or None."""
    return (reason or "").partition(CONTEXT_UNAVAILABLE)[0].removesuffix("; ") or None


async def remove_from_open_round(
    work: UnitOfWork, task: Task, client: str, now: datetime, *, drop_contribution: bool = False
) -> Round | None:
    """Stop waiting for a client in the open round; return the round if that changed its state.

    Args:
        drop_contribution: what the client sent to an open context round no longer counts.
    """
    round_ = await work.rounds.newest(task.name, for_update=True)
    if round_ is None or round_.state is not RoundState.OPEN:
        return None
    seat = await work.rounds.seat(task.name, round_.number, client)
    if seat is None:
        return None
    contributed = seat.entry is not None
    if contributed and not (drop_contribution and round_.kind is RoundKind.CONTEXT):
        return None
    await work.rounds.unseat(task.name, round_.number, client)
    state = round_.excuse(now, contributed=contributed)
    await work.rounds.save(round_)
    if state is RoundState.FAILED:
        task.fail(f"round {round_.number} ({round_.kind}) failed: {round_.reason}")
    return None if state is RoundState.OPEN else round_
