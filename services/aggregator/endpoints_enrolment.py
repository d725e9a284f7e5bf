"""Routes around enrolment by code, and the audit. Each parses, calls, returns."""

from __future__ import annotations

from asgi_correlation_id import correlation_id
from fastapi import APIRouter, Request, status

from ifed.access import AuditLine, CodeTrade, Enrolment, EnrolmentCodeInfo, NewEnrolment
from ifed.contracts import Page
from ifed.errors import AlreadyExists, Forbidden, Malformed, Overloaded, Unauthenticated, Unavailable
from ifed.web import refusals
from services.aggregator.endpoints_access import AdminOnly, AggregatorDep
from services.aggregator.endpoints_parameters import AfterNumber, Limit

router = APIRouter(prefix="/v1")


@router.post(
    "/enrolments",
    status_code=status.HTTP_201_CREATED,
    tags=["admin"],
    dependencies=[AdminOnly],
    responses=refusals(Unauthenticated, Forbidden, Malformed, Unavailable),
)
async def invite_client(request: NewEnrolment, service: AggregatorDep) -> EnrolmentCodeInfo:
    """Make a code that one party trades for its token, once and before it expires. It is shown this once."""
    return await service.parties.invite(request)


@router.post(
    "/enrol",
    status_code=status.HTTP_201_CREATED,
    tags=["client"],
    responses=refusals(Unauthenticated, AlreadyExists, Malformed, Overloaded, Unavailable),
)
async def redeem_code(trade: CodeTrade, request: Request, service: AggregatorDep) -> Enrolment:
    """Trade an enrolment code for a token; takes no token. The token is in this answer and nowhere else."""
    await service.rates.admit(f"enrol from {request.client.host if request.client else 'nowhere'}")
    return await service.parties.redeem(trade.code, correlation_id.get())


@router.get(
    "/audit", tags=["admin"], dependencies=[AdminOnly], responses=refusals(Unauthenticated, Forbidden, Malformed, Unavailable)
)
async def read_audit(service: AggregatorDep, after: AfterNumber = 0, limit: Limit = 100) -> Page[AuditLine]:
    """What admins asked for, oldest first. A line was written before it was done; the log tells the outcome by its request id."""
    return await service.auditing.page(after, limit)
