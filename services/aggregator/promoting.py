"""Lets a task serve what its policy says, if its context vector may be served. Inside the caller's transaction, which locks the task."""

from __future__ import annotations

from services.aggregator.plan import promoted
from services.aggregator.ports import Work
from services.aggregator.records import FederatedTask

# No other reason of a task holds these words: what stands before them is kept.
VOID = "its context vector cannot be made without those who withdrew"


async def promote(work: Work, task: FederatedTask) -> None:
    """Serve the version that the policy names, or nothing."""
    task.served = promoted(task, await work.rounds.evaluations(task.name)) if await may_serve(work, task) else None


async def may_serve(work: Work, task: FederatedTask) -> bool:
    """Whether the newest context vector reflects every change that is settled.

    It does not when no vector could be made of those who are left: the newest one then holds what somebody took back.
    """
    return (await work.aggregates.context(task.name)).changes >= task.context_settled


def besides_void(reason: str | None) -> str | None:
    """What a task's reason says beside `VOID`, as why it failed; None for nothing."""
    return (reason or "").partition(VOID)[0].removesuffix("; ") or None
