"""Routes for enrolment, tokens and the audit log."""

from __future__ import annotations

from asgi_correlation_id import correlation_id
from fastapi import APIRouter, status

from ifed.errors import (
    AlreadyExists,
    BodyTimeout,
    Forbidden,
    Malformed,
    NotJoined,
    Overloaded,
    TooLarge,
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
    AccessDep,
    AddressDep,
    AdminOnly,
    After,
    AfterNumber,
    Anyone,
    AuditLogDep,
    HolderDep,
    Limit,
    NamePath,
    ParticipationDep,
    PartyRoute,
    PublicRoute,
)

router = APIRouter(
    route_class=PartyRoute,
    prefix="/v1",
    tags=["admin"],
    dependencies=[AdminOnly],
    responses=refusals(Unauthenticated, Forbidden, Malformed, BodyTimeout, TooLarge, Overloaded, Unavailable),
)
others = APIRouter(prefix="/v1", route_class=PartyRoute)  # its routes differ in the role they take
public = APIRouter(prefix="/v1", route_class=PublicRoute)


@router.post("/clients", status_code=status.HTTP_201_CREATED, responses=refusals(AlreadyExists))
async def enrol_client(request: NewClient, access: AccessDep) -> Enrolment:
    """Enrol a client or a reader. Its token is shown only here."""
    return await access.enrol(request)


@router.get("/clients")
async def list_clients(access: AccessDep, after: After = None, limit: Limit = 100) -> Page[ClientInfo]:
    """List enrolled parties by name, revoked ones included."""
    return await access.page(after, limit)


@router.delete("/clients/{client}", status_code=status.HTTP_204_NO_CONTENT, responses=refusals(UnknownClient))
async def revoke_client(client: NamePath, access: AccessDep) -> None:
    """Revoke a party permanently; open rounds stop waiting for it."""
    await access.revoke(client)


@router.post("/clients/{client}/rotate", responses=refusals(UnknownClient, WrongState))
async def rotate_token(client: NamePath, access: AccessDep) -> Enrolment:
    """Give a party a new token; the old one becomes invalid at once."""
    return await access.rotate(client)


@router.post("/tasks/{task}/clients/{client}/withdraw", responses=refusals(UnknownTask, NotJoined))
async def withdraw_client(task: NamePath, client: NamePath, participation: ParticipationDep) -> Withdrawal:
    """Withdraw a client from a task permanently; its token remains valid for other tasks."""
    return await participation.withdraw(task, client)


@others.post(
    "/enrolments",
    status_code=status.HTTP_201_CREATED,
    tags=["admin"],
    dependencies=[AdminOnly],
    responses=refusals(Unauthenticated, Forbidden, Malformed, BodyTimeout, TooLarge, Overloaded, Unavailable),
)
async def invite_client(request: NewEnrolment, access: AccessDep) -> EnrolmentCodeInfo:
    """Create a code that one party trades for its token, once and before it expires. It is shown only here."""
    return await access.invite(request)


@public.post(
    "/enrol",
    status_code=status.HTTP_201_CREATED,
    tags=["client"],
    responses=refusals(Unauthenticated, AlreadyExists, Malformed, BodyTimeout, TooLarge, Overloaded, Unavailable),
)
async def redeem_code(trade: CodeTrade, address: AddressDep, access: AccessDep) -> Enrolment:
    """Trade an enrolment code for a token. Needs no token; the new one is shown only here."""
    return await access.redeem(trade.code, correlation_id.get(), address=address)


@others.get(
    "/audit",
    tags=["admin"],
    dependencies=[AdminOnly],
    responses=refusals(Unauthenticated, Forbidden, Malformed, BodyTimeout, TooLarge, Overloaded, Unavailable),
)
async def read_audit(audit_log: AuditLogDep, after: AfterNumber = 0, limit: Limit = 100) -> Page[AuditLine]:
    """List what admins requested, oldest first. Entries are written before the request is carried out; the log has the outcome by request id."""
    return await audit_log.page(after, limit)


@others.get("/token", tags=["access"], dependencies=[Anyone], responses=refusals(Unauthenticated, Overloaded, Unavailable))
async def get_token(holder: HolderDep) -> TokenHolder:
    """Return name and role of the party that holds the bearer token of this request."""
    return holder
