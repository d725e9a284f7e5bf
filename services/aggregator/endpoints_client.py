"""Routes for clients: join, assignment, contributions. Each parses, calls, returns."""

from __future__ import annotations

from fastapi import APIRouter

from ifed.contracts import Assignment, JoinRequest, Member, Receipt
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
from ifed.web import refusals
from services.aggregator import intake
from services.aggregator.endpoints_access import AggregatorDep, ClientDep
from services.aggregator.endpoints_parameters import NamePath, NumberPath, Wait
from services.aggregator.endpoints_tensors import REQUEST, BodyDep

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
    return await service.participation.submit(task, number, client, body, intake.read_context_body)


@router.put("/rounds/{number}/update", responses=CONTRIBUTING, openapi_extra=REQUEST)
async def submit_update(task: NamePath, number: NumberPath, client: ClientDep, body: BodyDep, service: AggregatorDep) -> Receipt:
    """Contribute to an open calibration or evaluation round. The same bytes again give the same receipt."""
    return await service.participation.submit(task, number, client, body, intake.read_update_body)
