"""Admin routes for clients, enrolment codes and the audit log, and the routes that take or check a token."""

from __future__ import annotations

from asgi_correlation_id import correlation_id
from fastapi import APIRouter, Request, status

from ifed.errors import (
    AlreadyExists,
    Forbidden,
    Malformed,
    NotJoined,
    Overloaded,
    Unauthenticated,
    Unavailable,
    UnknownClient,
    UnknownTask,
    WrongState,
)
from ifed.messages.clients import (
    AuditLine,
    ClientInfo,
    CodeTrade,
    Enrolment,
    EnrolmentCodeInfo,
    NewClient,
    NewEnrolment,
    TokenHolder,
)
from ifed.messages.rounds import Page, Withdrawal
from ifed.server.web import refusals
from services.aggregator.api.dependencies import (
    AdminOnly,
    After,
    AfterNumber,
    AggregatorDep,
    Credentials,
    Limit,
    NamePath,
)

router = APIRouter(
    prefix="/v1", tags=["admin"], dependencies=[AdminOnly], responses=refusals(Unauthenticated, Forbidden, Malformed, Unavailable)
)
access = APIRouter(prefix="/v1")  # each route names the token it takes


@router.post("/clients", status_code=status.HTTP_201_CREATED, responses=refusals(AlreadyExists))
async def enrol_client(request: NewClient, service: AggregatorDep) -> Enrolment:
    """Enrol a client or a reader. Its token is shown this once."""
    return await service.parties.enrol(request)


@router.get("/clients")
async def list_clients(service: AggregatorDep, after: After = None, limit: Limit = 100) -> Page[ClientInfo]:
    """Enrolled parties by name, revoked ones too."""
    return await service.parties.page(after, limit)


@router.delete("/clients/{client}", status_code=status.HTTP_204_NO_CONTENT, responses=refusals(UnknownClient))
async def revoke_client(client: NamePath, service: AggregatorDep) -> None:
    """End a party's token at once; open rounds stop waiting for it."""
    await service.parties.revoke(client)


@router.post("/clients/{client}/rotate", responses=refusals(UnknownClient, WrongState))
async def rotate_token(client: NamePath, service: AggregatorDep) -> Enrolment:
    """Give a party a new token; the old one ends at once."""
    return await service.parties.rotate(client)


@router.post("/tasks/{task}/clients/{client}/withdraw", responses=refusals(UnknownTask, NotJoined))
async def withdraw_client(task: NamePath, client: NamePath, service: AggregatorDep) -> Withdrawal:
    """The same for a client, by an admin; its token goes on for other tasks."""
    return await service.additions.withdraw(task, client)


@access.post(
    "/enrolments",
    status_code=status.HTTP_201_CREATED,
    tags=["admin"],
    dependencies=[AdminOnly],
    responses=refusals(Unauthenticated, Forbidden, Malformed, Unavailable),
)
async def invite_client(request: NewEnrolment, service: AggregatorDep) -> EnrolmentCodeInfo:
    """Make a code that one party trades for its token, once and before it expires. It is shown this once."""
    return await service.parties.invite(request)


@access.post(
    "/enrol",
    status_code=status.HTTP_201_CREATED,
    tags=["client"],
    responses=refusals(Unauthenticated, AlreadyExists, Malformed, Overloaded, Unavailable),
)
async def redeem_code(trade: CodeTrade, request: Request, service: AggregatorDep) -> Enrolment:
    """Trade an enrolment code for a token; takes no token. The token is in this answer and nowhere else."""
    await service.rates.check(f"enrol from {request.client.host if request.client else 'nowhere'}")
    return await service.parties.redeem(trade.code, correlation_id.get())


@access.get(
    "/audit", tags=["admin"], dependencies=[AdminOnly], responses=refusals(Unauthenticated, Forbidden, Malformed, Unavailable)
)
async def read_audit(service: AggregatorDep, after: AfterNumber = 0, limit: Limit = 100) -> Page[AuditLine]:
    """What admins asked for, oldest first. A line was written before it was done; the log tells the outcome by its request id."""
    return await service.auditing.page(after, limit)


@access.get("/token", tags=["access"], responses=refusals(Unauthenticated, Unavailable))
async def get_token(service: AggregatorDep, credentials: Credentials) -> TokenHolder:
    """Name and role of the party that holds the bearer token of this request."""
    return await service.parties.holder(credentials.credentials if credentials else None)
