"""Client routes: join, assignment, contributions, additions and withdrawal."""

from __future__ import annotations

from fastapi import APIRouter

from ifed.errors import (
    AlreadyContributed,
    DigestMismatch,
    FingerprintMismatch,
    Forbidden,
    LayoutMismatch,
    Malformed,
    NonFinite,
    NotJoined,
    Overloaded,
    ProbeMismatch,
    RoundClosed,
    StaleUpdate,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnknownTask,
    Withdrawn,
    WrongState,
)
from ifed.messages.rounds import Assignment, JoinRequest, Member, Receipt, Withdrawal
from ifed.server.web import refusals
from services.aggregator.api.dependencies import AggregatorDep, ClientDep, NamePath, NumberPath, Wait
from services.aggregator.api.tensor_bodies import REQUEST, BodyDep
from services.aggregator.application import participation

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
    FingerprintMismatch,
    Malformed,
    LayoutMismatch,
    NonFinite,
    DigestMismatch,
    TooLarge,
)

router = APIRouter(
    prefix="/v1/tasks/{task}", tags=["client"], responses=refusals(Unauthenticated, Forbidden, Malformed, Overloaded, Unavailable)
)


@router.post("/join", responses=refusals(UnknownTask, FingerprintMismatch, ProbeMismatch, Withdrawn, Malformed, LayoutMismatch))
async def join(task: NamePath, request: JoinRequest, client: ClientDep, service: AggregatorDep) -> Member:
    """Take part in a task; again after a restart, with new counts if they changed."""
    return await service.participation.join(task, client, request)


@router.get("/assignment", responses=refusals(UnknownTask))
async def get_assignment(task: NamePath, client: ClientDep, service: AggregatorDep, wait: Wait = 0.0) -> Assignment:
    """What to do next, held back up to `wait` seconds while that is nothing."""
    return await service.participation.assignment(task, client, wait=wait)


@router.put("/rounds/{number}/context", responses=CONTRIBUTING, openapi_extra=REQUEST)
async def submit_context(task: NamePath, number: NumberPath, client: ClientDep, body: BodyDep, service: AggregatorDep) -> Receipt:
    """Contribute a client's context vector to an open context round. The same bytes again give the same receipt."""
    return await service.participation.submit(task, number, client, body, participation.read_context_body)


@router.put("/rounds/{number}/update", responses=CONTRIBUTING, openapi_extra=REQUEST)
async def submit_update(task: NamePath, number: NumberPath, client: ClientDep, body: BodyDep, service: AggregatorDep) -> Receipt:
    """Contribute to an open calibration or evaluation round. The same bytes again give the same receipt."""
    return await service.participation.submit(task, number, client, body, participation.read_update_body)


@router.post("/context", responses=ADDING, openapi_extra=REQUEST)
async def add_to_context(task: NamePath, client: ClientDep, body: BodyDep, service: AggregatorDep) -> Receipt:
    """Add demonstrations after the context round has closed: a late joiner's first, or more. The same bytes again give the same receipt."""
    return await service.additions.add(task, client, body)


@router.post("/withdraw", responses=refusals(UnknownTask, NotJoined))
async def withdraw(task: NamePath, client: ClientDep, service: AggregatorDep) -> Withdrawal:
    """Take part no more, for good: what the client brought to the context vector is taken out of it, and it is asked no more."""
    return await service.additions.withdraw(task, client)
