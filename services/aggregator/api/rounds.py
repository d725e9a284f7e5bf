"""Admin routes for rounds, the ledger and the versions of the context vector."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

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
from ifed.messages.rounds import (
    ContextInfo,
    Extension,
    LedgerEntry,
    Page,
    Replay,
    RoundInfo,
)
from ifed.server.web import refusals
from services.aggregator.api.dependencies import (
    AdminOnly,
    AfterNumber,
    AggregatorDep,
    Limit,
    NamePath,
    NumberPath,
)

router = APIRouter(
    prefix="/v1", tags=["admin"], dependencies=[AdminOnly], responses=refusals(Unauthenticated, Forbidden, Malformed, Unavailable)
)

AfterEntry = Annotated[
    str,
    Query(
        pattern=r"^[0-9]{1,9}/[a-z0-9._-]{0,63}(/[0-9]{1,9})?$",
        description="`next` of the page before: a round, a client and a change, with slashes between",
    ),
]


@router.get("/tasks/{task}/rounds", responses=refusals(UnknownTask))
async def list_rounds(task: NamePath, service: AggregatorDep, after: AfterNumber = 0, limit: Limit = 100) -> Page[RoundInfo]:
    """Rounds by number, failed and cancelled ones too."""
    return await service.administration.rounds(task, after, limit)


@router.get("/tasks/{task}/rounds/{number}", responses=refusals(UnknownTask, UnknownRound))
async def get_round(task: NamePath, number: NumberPath, service: AggregatorDep) -> RoundInfo:
    """One round: who contributed, who is missing."""
    return await service.administration.round(task, number)


@router.post("/tasks/{task}/rounds/{number}/close", responses=refusals(UnknownTask, UnknownRound, WrongState))
async def close_round(task: NamePath, number: NumberPath, service: AggregatorDep) -> RoundInfo:
    """End an open round now with those who came, quorum or not."""
    return await service.administration.close(task, number)


@router.post("/tasks/{task}/rounds/{number}/cancel", responses=refusals(UnknownTask, UnknownRound, WrongState))
async def cancel_round(task: NamePath, number: NumberPath, service: AggregatorDep) -> RoundInfo:
    """Give an open round up; the task pauses, and resume opens a new round."""
    return await service.administration.cancel(task, number)


@router.post("/tasks/{task}/rounds/{number}/extend", responses=refusals(UnknownTask, UnknownRound, WrongState))
async def extend_round(task: NamePath, number: NumberPath, extension: Extension, service: AggregatorDep) -> RoundInfo:
    """Give an open round more time."""
    return await service.administration.extend(task, number, extension.seconds)


@router.get("/tasks/{task}/ledger", responses=refusals(UnknownTask))
async def get_ledger(task: NamePath, service: AggregatorDep, after: AfterEntry = "0/", limit: Limit = 100) -> Page[LedgerEntry]:
    """Every contribution that was answered 2xx, by round, client and change: digest, weight, time; never what it holds."""
    number, client, change = f"{after}/0".split("/")[:3]
    return await service.history.ledger(task, (int(number), client, int(change)), limit)


@router.get("/tasks/{task}/rounds/{number}/replay", responses=refusals(UnknownTask, UnknownRound, NothingYet, WrongState))
async def replay_round(task: NamePath, number: NumberPath, service: AggregatorDep) -> Replay:
    """Sum a closed round up again from the ledger and hold the result against what is kept, byte for byte."""
    return await service.history.replay(task, number)


@router.get("/tasks/{task}/contexts", responses=refusals(UnknownTask))
async def list_contexts(task: NamePath, service: AggregatorDep, after: AfterNumber = 0, limit: Limit = 100) -> Page[ContextInfo]:
    """The versions of the context vector: the context round's, and one for what was added and withdrawn since the version before."""
    return await service.history.contexts(task, after, limit)


@router.get("/tasks/{task}/contexts/{version}/replay", responses=refusals(UnknownTask, NothingYet, UnknownVersion))
async def replay_context(task: NamePath, version: NumberPath, service: AggregatorDep) -> Replay:
    """Sum one version of the context vector up again from the ledger as it stood then, and compare, byte for byte."""
    return await service.history.replay_context(task, version)
