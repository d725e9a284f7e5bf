"""Routes for admins about what a task went through: rollback, ledger, replay, and which others are like it. Each parses, calls, returns."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from ifed.contracts import Page, TaskInfo
from ifed.errors import (
    Forbidden,
    Malformed,
    NothingYet,
    Unauthenticated,
    Unavailable,
    UnknownRound,
    UnknownTask,
    UnknownVersion,
    WrongState,
)
from ifed.history import LedgerEntry, Matches, MatchRequest, Replay, Rollback
from ifed.web import refusals
from services.aggregator.endpoints_access import AdminOnly, AggregatorDep
from services.aggregator.endpoints_parameters import Limit, NamePath, NumberPath

router = APIRouter(
    prefix="/v1/tasks",
    tags=["admin"],
    dependencies=[AdminOnly],
    responses=refusals(Unauthenticated, Forbidden, Malformed, Unavailable, UnknownTask),
)
AfterEntry = Annotated[
    str,
    Query(
        pattern=r"^[0-9]{1,9}/[a-z0-9._-]{0,63}(/[0-9]{1,9})?$",
        description="`next` of the page before: a round, a client and a change, with slashes between",
    ),
]


@router.post("/{task}/rollback", responses=refusals(UnknownTask, UnknownVersion, WrongState))
async def roll_back(task: NamePath, rollback: Rollback, service: AggregatorDep) -> TaskInfo:
    """Serve an earlier version now; a running task pauses, and goes on from that version when it is resumed."""
    return await service.history.rollback(task, rollback.version)


@router.get("/{task}/ledger")
async def get_ledger(task: NamePath, service: AggregatorDep, after: AfterEntry = "0/", limit: Limit = 100) -> Page[LedgerEntry]:
    """Every contribution that was answered 2xx, by round, client and change: digest, weight, time; never what it holds."""
    number, client, change = f"{after}/0".split("/")[:3]
    return await service.history.ledger(task, (int(number), client, int(change)), limit)


@router.get("/{task}/rounds/{number}/replay", responses=refusals(UnknownTask, UnknownRound, NothingYet, WrongState))
async def replay_round(task: NamePath, number: NumberPath, service: AggregatorDep) -> Replay:
    """Sum a closed round up again from the ledger and hold the result against what is kept, byte for byte."""
    return await service.history.replay(task, number)


@router.post("/match", responses=refusals(UnknownTask, NothingYet))
async def match_tasks(request: MatchRequest, service: AggregatorDep) -> Matches:
    """The finished tasks whose context vectors are most like this task's, on the same model: where a warm start could come from."""
    return await service.matching.match(request)
