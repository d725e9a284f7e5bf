"""Opens the next round of a running task, if there is one to open; inside the caller's transaction, which locks the task."""

from __future__ import annotations

from datetime import datetime

from ifed.states import RoundKind, TaskState
from services.aggregator.domain import Round
from services.aggregator.plan import attempt_after, clients_needed, early_end, next_step, open_round, seed_of
from services.aggregator.ports import Work
from services.aggregator.promoting import VOID, may_serve, promote
from services.aggregator.records import FederatedTask
from services.aggregator.sampling import sample


async def open_next(work: Work, task: FederatedTask, now: datetime) -> Round | None:
    """The round that opened; None when the task does not run, has one going, waits for clients, or has now finished.

    The task must have been read `for_update`; it is saved here.
    """
    opened = None
    newest = await work.rounds.newest(task.name)
    if task.state is TaskState.RUNNING and not (newest is not None and newest.live):
        opened = await _open(work, task, newest, now)
    await work.tasks.save(task)
    return opened


async def _open(work: Work, task: FederatedTask, newest: Round | None, now: datetime) -> Round | None:
    evaluations = await work.rounds.evaluations(task.name)
    step = next_step(task, newest, evaluations)
    if step is None:
        task.finish(early_end(task))
        await promote(work, task)
        return None
    if task.version is not None and not await may_serve(work, task):
        task.hold(f"{VOID}; resume it when others have brought theirs")
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
