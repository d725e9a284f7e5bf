"""Client routes: join, assignment, contributions, additions and withdrawal."""

from __future__ import annotations

from fastapi import APIRouter, Response

from ifed.errors import (
    AlreadyContributed,
    BodyTimeout,
    DigestMismatch,
    FingerprintMismatch,
    Forbidden,
    LayoutMismatch,
    Malformed,
    NonFinite,
    NotJoined,
    Overloaded,
    ProbeMismatch,
    QuotaExceeded,
    RoundClosed,
    StaleUpdate,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnknownRound,
    UnknownTask,
    Withdrawn,
    WrongState,
)
from ifed.messages.rounds import Assignment, JoinRequest, Member, Receipt, Withdrawal
from ifed.server.web import refusals
from services.aggregator.api.dependencies import CallerDep, ClientDep, NamePath, NumberPath, ParticipationDep, PartyRoute, Wait
from services.aggregator.api.tensor_bodies import TENSOR_REQUEST, TENSOR_RESPONSES, BodyDep, KnownDep, tensor_response

CONTRIBUTING = refusals(
    UnknownTask,
    NotJoined,
    Withdrawn,
    RoundClosed,
    StaleUpdate,
    AlreadyContributed,
    FingerprintMismatch,
    WrongState,
    Malformed,
    LayoutMismatch,
    NonFinite,
    DigestMismatch,
    TooLarge,
)

ADDING = refusals(
    UnknownTask,
    Overloaded,
    NotJoined,
    Withdrawn,
    WrongState,
    QuotaExceeded,
    FingerprintMismatch,
    Malformed,
    LayoutMismatch,
    NonFinite,
    DigestMismatch,
    TooLarge,
)

router = APIRouter(
    route_class=PartyRoute,
    prefix="/v1/tasks/{task}",
    tags=["client"],
    responses=refusals(Unauthenticated, Forbidden, Malformed, BodyTimeout, TooLarge, Overloaded, Unavailable),
)


@router.post("/join", responses=refusals(UnknownTask, FingerprintMismatch, ProbeMismatch, Withdrawn, Malformed, LayoutMismatch))
async def join(task: NamePath, request: JoinRequest, client: ClientDep, participation: ParticipationDep) -> Member:
    """Join a task, or join again with new example counts."""
    return await participation.join(task, client, request)


@router.get("/assignment", responses=refusals(UnknownTask))
async def get_assignment(
    task: NamePath, client: ClientDep, caller: CallerDep, participation: ParticipationDep, wait: Wait = 0.0
) -> Assignment:
    """Return what to do next; wait up to `wait` seconds while that is nothing."""
    return await participation.assignment(task, client, wait=wait, caller=caller)


@router.put("/rounds/{number}/context", responses=CONTRIBUTING, openapi_extra=TENSOR_REQUEST)
async def submit_context(
    task: NamePath, number: NumberPath, client: ClientDep, body: BodyDep, participation: ParticipationDep
) -> Receipt:
    """Add one client's context vector to an open context round. The same bytes again give the same receipt."""
    return await participation.submit_context(task, number, client, body)


@router.put("/rounds/{number}/update", responses=CONTRIBUTING, openapi_extra=TENSOR_REQUEST)
async def submit_update(
    task: NamePath, number: NumberPath, client: ClientDep, body: BodyDep, participation: ParticipationDep
) -> Receipt:
    """Add one client's update to an open calibration or evaluation round. The same bytes again give the same receipt."""
    return await participation.submit_update(task, number, client, body)


@router.get("/rounds/{number}/query", responses=TENSOR_RESPONSES | refusals(UnknownTask, UnknownRound), response_class=Response)
async def get_query(
    task: NamePath, number: NumberPath, _client: ClientDep, known: KnownDep, participation: ParticipationDep
) -> Response:
    """Return what a head round asks: label shares, and directions or candidates."""
    return tensor_response(await participation.query(task, number), known)


@router.put("/rounds/{number}/head", responses=CONTRIBUTING, openapi_extra=TENSOR_REQUEST)
async def submit_head(
    task: NamePath, number: NumberPath, client: ClientDep, body: BodyDep, participation: ParticipationDep
) -> Receipt:
    """Add one client's answer to an open head round. The same bytes again give the same receipt."""
    return await participation.submit_head(task, number, client, body)


@router.post("/context", responses=ADDING, openapi_extra=TENSOR_REQUEST)
async def add_to_context(task: NamePath, client: ClientDep, body: BodyDep, participation: ParticipationDep) -> Receipt:
    """Add a context vector of further demonstrations, or a late joiner's first. The same bytes again give the same receipt."""
    return await participation.add(task, client, body)


@router.post("/withdraw", responses=refusals(UnknownTask, NotJoined))
async def withdraw(task: NamePath, client: ClientDep, participation: ParticipationDep) -> Withdrawal:
    """Withdraw from a task permanently: the client's context vectors no longer count, and it gets no more work."""
    return await participation.withdraw(task, client)
