"""Admin routes for rounds, the ledger and the versions of the context vector."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from ifed.errors import (
    BodyTimeout,
    Forbidden,
    Malformed,
    NothingYet,
    Overloaded,
    TooLarge,
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
    LedgerDep,
    Limit,
    NamePath,
    NumberPath,
    PartyRoute,
    RoundsDep,
)

router = APIRouter(
    route_class=PartyRoute,
    prefix="/v1",
    tags=["admin"],
    dependencies=[AdminOnly],
    responses=refusals(Unauthenticated, Forbidden, Malformed, BodyTimeout, TooLarge, Overloaded, Unavailable),
)

AfterEntry = Annotated[
    str,
    Query(
        pattern=r"^[0-9]{1,9}/[a-z0-9._-]{0,63}(/[0-9]{1,9})?$",
        description="`next` of the page before: a round, a client and a change, with slashes between",
    ),
]


@router.get("/tasks/{task}/rounds", responses=refusals(UnknownTask))
async def list_rounds(task: NamePath, rounds: RoundsDep, after: AfterNumber = 0, limit: Limit = 100) -> Page[RoundInfo]:
    """List rounds by number, failed and cancelled ones included."""
    return await rounds.page(task, after, limit)


@router.get("/tasks/{task}/rounds/{number}", responses=refusals(UnknownTask, UnknownRound))
async def get_round(task: NamePath, number: NumberPath, rounds: RoundsDep) -> RoundInfo:
    """Return a round: who has contributed and who is missing."""
    return await rounds.get(task, number)


@router.post("/tasks/{task}/rounds/{number}/close", responses=refusals(UnknownTask, UnknownRound, WrongState))
async def close_round(task: NamePath, number: NumberPath, rounds: RoundsDep) -> RoundInfo:
    """End an open round now, with or without a quorum."""
    return await rounds.close(task, number)


@router.post("/tasks/{task}/rounds/{number}/cancel", responses=refusals(UnknownTask, UnknownRound, WrongState))
async def cancel_round(task: NamePath, number: NumberPath, rounds: RoundsDep) -> RoundInfo:
    """Cancel an open round; the task pauses, and resuming it opens a new round."""
    return await rounds.cancel(task, number)


@router.post("/tasks/{task}/rounds/{number}/extend", responses=refusals(UnknownTask, UnknownRound, WrongState))
async def extend_round(task: NamePath, number: NumberPath, extension: Extension, rounds: RoundsDep) -> RoundInfo:
    """Move the deadline of an open round."""
    return await rounds.extend(task, number, extension.seconds)


@router.get("/tasks/{task}/ledger", responses=refusals(UnknownTask))
async def get_ledger(task: NamePath, ledger: LedgerDep, after: AfterEntry = "0/", limit: Limit = 100) -> Page[LedgerEntry]:
    """List every stored contribution by round, client and change: digest, weight and time, without its content."""
    return await ledger.page(task, after, limit)


@router.get("/tasks/{task}/rounds/{number}/replay", responses=refusals(UnknownTask, UnknownRound, NothingYet, WrongState))
async def replay_round(task: NamePath, number: NumberPath, ledger: LedgerDep) -> Replay:
    """Aggregate a closed round again from its contributions and compare the result with the stored one, byte for byte."""
    return await ledger.replay(task, number)


@router.get("/tasks/{task}/contexts", responses=refusals(UnknownTask))
async def list_contexts(task: NamePath, ledger: LedgerDep, after: AfterNumber = 0, limit: Limit = 100) -> Page[ContextInfo]:
    """List the versions of the context vector: that of the context round, and one after each set of additions and withdrawals."""
    return await ledger.contexts(task, after, limit)


@router.get("/tasks/{task}/contexts/{version}/replay", responses=refusals(UnknownTask, NothingYet, UnknownVersion))
async def replay_context(task: NamePath, version: NumberPath, ledger: LedgerDep) -> Replay:
    """Aggregate one version of the context vector again from the ledger as it was then, and compare, byte for byte."""
    return await ledger.replay_context(task, version)
