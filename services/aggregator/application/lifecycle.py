"""What happens between rounds, inside a transaction that has locked the task: opening, promoting, leaving."""

from __future__ import annotations

from datetime import datetime

from ifed.messages.enums import RoundKind, RoundState, TaskState
from services.aggregator.domain.round import Round
from services.aggregator.domain.schedule import (
    attempt_after,
    clients_needed,
    early_end,
    next_step,
    open_round,
    promoted,
    sample,
    seed_of,
)
from services.aggregator.domain.task import Task
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
    members = [member.client for member in await work.memberships.of_task(task.name)]
    if len(members) < clients_needed(task.spec.policy, newest):
        return None
    number = 1 if newest is None else newest.number + 1
    if step.kind is RoundKind.CALIBRATION:
        members = sample(members, task.spec.policy.sampled(len(members)), seed_of(task.name, number))
    context = None if step.kind is RoundKind.CONTEXT else (await work.aggregates.context(task.name)).version
    round_ = open_round(task, step, number, len(members), now, attempt=attempt_after(task, newest), context=context)
    await work.rounds.add(round_, members)
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
