"""FastAPI dependencies: the use cases, who may call, and the parameters that several routes share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from asgi_correlation_id import correlation_id
from fastapi import Depends, Path, Query, Request
from fastapi.security import HTTPBearer

from ifed.messages.clients import TokenHolder
from ifed.messages.enums import Role
from ifed.messages.tasks import NAME_PATTERN
from ifed.server.authentication import address_of, token_of
from ifed.server.bodies import JsonRoute
from services.aggregator.application.access import Access, AuditLog, check_role
from services.aggregator.application.adapters import AdapterStore
from services.aggregator.application.evaluations import Evaluations
from services.aggregator.application.events import EventStream, Webhooks
from services.aggregator.application.participation import Participation
from services.aggregator.application.rounds import Ledger, RoundService
from services.aggregator.application.services import Services
from services.aggregator.application.similarity import TaskSimilarity
from services.aggregator.application.tasks import TaskService
from services.aggregator.runtime.long_poll import Caller
from services.aggregator.runtime.rate_limit import RateLimiter

MAX_JSON_BYTES = 256 * 1024  # of any JSON body; the largest in use, the join of a model of 100 layers, has 40 KB
UseCase = TypeVar("UseCase")


async def _services(request: Request) -> Services:
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


ServicesDep = Annotated[Services, Depends(_services)]


def _use_case(select: Callable[[Services], UseCase]) -> Any:
    """Return the dependency on one of the services."""

    async def use_case(services: ServicesDep) -> UseCase:
        return select(services)

    return Depends(use_case)


AccessDep = Annotated[Access, _use_case(lambda services: services.access)]
AuditLogDep = Annotated[AuditLog, _use_case(lambda services: services.audit_log)]
RateLimiterDep = Annotated[RateLimiter, _use_case(lambda services: services.rate_limiter)]
TasksDep = Annotated[TaskService, _use_case(lambda services: services.tasks)]
RoundsDep = Annotated[RoundService, _use_case(lambda services: services.rounds)]
LedgerDep = Annotated[Ledger, _use_case(lambda services: services.ledger)]
EvaluationsDep = Annotated[Evaluations, _use_case(lambda services: services.evaluations)]
ParticipationDep = Annotated[Participation, _use_case(lambda services: services.participation)]
AdaptersDep = Annotated[AdapterStore, _use_case(lambda services: services.adapters)]
SimilarityDep = Annotated[TaskSimilarity, _use_case(lambda services: services.similarity)]
EventStreamDep = Annotated[EventStream, _use_case(lambda services: services.event_stream)]
WebhooksDep = Annotated[Webhooks, _use_case(lambda services: services.webhooks)]

_bearer = HTTPBearer(auto_error=False, description="an admin's, client's or reader's token")


async def holder_of(request: Request) -> TokenHolder:
    """Return the party that holds the token of a request; it is authenticated once for each request."""
    holder: TokenHolder | None = getattr(request.state, "holder", None)
    if holder is None:
        access = (await _services(request)).access
        holder = request.state.holder = await access.holder(await token_of(request, _bearer), address=address_of(request))
    return holder


Wait = Annotated[float, Query(ge=0, le=300, description="seconds the answer may be held back; the service may answer sooner")]


async def _holder(request: Request, _credentials: Annotated[object, Depends(_bearer)]) -> TokenHolder:
    return await holder_of(request)


HolderDep = Annotated[TokenHolder, Depends(_holder)]


async def _caller(request: Request, holder: HolderDep) -> Caller:
    return Caller(f"{holder.role} {holder.name}", request.is_disconnected)


CallerDep = Annotated[Caller, Depends(_caller)]


class PublicRoute(JsonRoute):
    """A route that takes a body from anybody."""

    max_json_bytes = MAX_JSON_BYTES


class PartyRoute(PublicRoute):
    """A route that takes a body only from the holder of a token."""

    async def authenticate(self, request: Request) -> None:
        """Raise Unauthenticated unless the request has the token of a party."""
        await holder_of(request)


def _party_with(*roles: Role) -> Callable[[RateLimiterDep, HolderDep], Awaitable[str]]:
    async def party(rate_limiter: RateLimiterDep, holder: HolderDep) -> str:
        check_role(holder, *roles)
        await rate_limiter.check(holder.name, role=holder.role)
        return holder.name

    return party


async def _follower(rate_limiter: RateLimiterDep, holder: HolderDep, wait: Wait = 0.0) -> str:
    """Count requests that wait apart, so that a service's single requests cannot use up what it follows its adapters with."""
    await rate_limiter.check(f"{holder.name}, waiting," if wait else holder.name, role=holder.role)
    return holder.name


async def _audited_admin(request: Request, audit_log: AuditLogDep, holder: HolderDep) -> str:
    check_role(holder, Role.ADMIN)
    if request.method not in ("GET", "HEAD"):
        action = f"{request.method} {request.scope['route'].path}"
        await audit_log.record(holder.name, action, request.url.path, correlation_id.get())
    return holder.name


AdminOnly = Depends(_audited_admin)
ClientDep = Annotated[str, Depends(_party_with(Role.CLIENT))]
Anyone = Depends(_party_with(Role.ADMIN, Role.CLIENT, Role.READER))
Follower = Depends(_follower)
AddressDep = Annotated[str, Depends(address_of)]

LARGEST = 2**31 - 1
NamePath = Annotated[str, Path(pattern=NAME_PATTERN, examples=["sentiment"])]
NumberPath = Annotated[int, Path(ge=1, le=LARGEST)]
VersionPath = Annotated[int, Path(ge=0, le=LARGEST, description="a version of the coefficients")]
Limit = Annotated[int, Query(ge=1, le=1000, description="items on a page")]
After = Annotated[str | None, Query(pattern=NAME_PATTERN, description="`next` of the page before")]
AfterNumber = Annotated[int, Query(ge=0, le=LARGEST, description="`next` of the page before")]
ContextVersion = Annotated[int | None, Query(ge=1, le=LARGEST, description="a version of the context vector")]
Version = Annotated[int | None, Query(ge=0, le=LARGEST, description="a version of the coefficients")]
