"""Routes around a context vector that grows and shrinks: additions, withdrawals, its versions and their proof."""

from __future__ import annotations

from fastapi import APIRouter

from ifed.contracts import Page, Receipt
from ifed.errors import (
    DigestMismatch,
    FingerprintMismatch,
    Forbidden,
    LayoutMismatch,
    Malformed,
    NonFinite,
    NothingYet,
    NotJoined,
    Overloaded,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnknownTask,
    UnknownVersion,
    Withdrawn,
    WrongState,
)
from ifed.history import ContextInfo, Replay, Withdrawal
from ifed.web import refusals
from services.aggregator.endpoints_access import AdminOnly, AggregatorDep, ClientDep
from services.aggregator.endpoints_parameters import AfterNumber, Limit, NamePath, NumberPath
from services.aggregator.endpoints_tensors import REQUEST, BodyDep

ADDING = refusals(
    Overloaded,
    NotJoined,
    Withdrawn,
    WrongState,
    FingerprintMismatch,
    Malformed,
    LayoutMismatch,
    NonFinite,
    DigestMismatch,
    TooLarge,
)

router = APIRouter(prefix="/v1/tasks/{task}", responses=refusals(Unauthenticated, Forbidden, Malformed, Unavailable, UnknownTask))


@router.post("/context", tags=["client"], responses=ADDING, openapi_extra=REQUEST)
async def add_to_context(task: NamePath, client: ClientDep, body: BodyDep, service: AggregatorDep) -> Receipt:
    """Add demonstrations after the context round has closed: a late joiner's first, or more. The same bytes again give the same receipt."""
    return await service.additions.add(task, client, body)


@router.post("/withdraw", tags=["client"], responses=refusals(NotJoined, Overloaded))
async def withdraw(task: NamePath, client: ClientDep, service: AggregatorDep) -> Withdrawal:
    """Take part no more, for good: what the client brought to the context vector is taken out of it, and it is asked no more."""
    return await service.additions.withdraw(task, client)


@router.post("/clients/{client}/withdraw", tags=["admin"], dependencies=[AdminOnly], responses=refusals(NotJoined))
async def withdraw_client(task: NamePath, client: NamePath, service: AggregatorDep) -> Withdrawal:
    """The same for a client, by an admin; its token goes on for other tasks."""
    return await service.additions.withdraw(task, client)


@router.get("/contexts", tags=["admin"], dependencies=[AdminOnly])
async def list_contexts(task: NamePath, service: AggregatorDep, after: AfterNumber = 0, limit: Limit = 100) -> Page[ContextInfo]:
    """The versions of the context vector: the context round's, and one for what was added and withdrawn since the version before."""
    return await service.history.contexts(task, after, limit)


@router.get("/contexts/{version}/replay", tags=["admin"], dependencies=[AdminOnly], responses=refusals(NothingYet, UnknownVersion))
async def replay_context(task: NamePath, version: NumberPath, service: AggregatorDep) -> Replay:
    """Sum one version of the context vector up again from the ledger as it stood then, and compare, byte for byte."""
    return await service.history.replay_context(task, version)
