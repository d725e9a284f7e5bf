"""What a task does when one of its clients is gone: it no longer waits for it. Inside the caller's transaction, which locks the task."""

from __future__ import annotations

from datetime import datetime

from ifed.states import RoundKind, RoundState
from services.aggregator.domain import Round
from services.aggregator.ports import Work
from services.aggregator.records import FederatedTask


async def stop_waiting(work: Work, task: FederatedTask, client: str, now: datetime, *, takes_back: bool = False) -> Round | None:
    """Wait for the client no longer in the open round; the round, if that changed its state.

    Args:
        takes_back: what it sent to an open context round counts no more.
    """
    round_ = await work.rounds.newest(task.name, for_update=True)
    if round_ is None or round_.state is not RoundState.OPEN:
        return None
    seat = await work.rounds.seat(task.name, round_.number, client)
    if seat is None:
        return None
    contributed = seat.entry is not None
    if contributed and not (takes_back and round_.kind is RoundKind.CONTEXT):
        return None
    await work.rounds.unseat(task.name, round_.number, client)
    after = round_.excuse(now, contributed=contributed)
    await work.rounds.save(round_)
    if after is RoundState.FAILED:
        task.fail(f"round {round_.number} ({round_.kind}) failed: {round_.reason}")
    return None if after is RoundState.OPEN else round_
