"""FastAPI dependencies: the use cases, who may call, and the parameters that several routes share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from asgi_correlation_id import correlation_id
from fastapi import Depends, Path, Query, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from ifed.messages.enums import Role
from ifed.messages.tasks import NAME_PATTERN
from services.aggregator.application.access import Access, AuditLog
from services.aggregator.application.adapters import AdapterStore
from services.aggregator.application.evaluations import Evaluations
from services.aggregator.application.events import EventStream, Webhooks
from services.aggregator.application.participation import Participation
from services.aggregator.application.rounds import Ledger, RoundService
from services.aggregator.application.services import Services
from services.aggregator.application.similarity import TaskSimilarity
from services.aggregator.application.tasks import TaskService
from services.aggregator.runtime.rate_limit import RateLimiter

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


async def _token(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> str | None:
    return credentials.credentials if credentials else None


TokenDep = Annotated[str | None, Depends(_token)]
Wait = Annotated[float, Query(ge=0, le=300, description="seconds the answer may be held back; the service may answer sooner")]


def _party_with(*roles: Role) -> Callable[[AccessDep, RateLimiterDep, TokenDep], Awaitable[str]]:
    async def party(access: AccessDep, rate_limiter: RateLimiterDep, token: TokenDep) -> str:
        name = await access.authenticate(token, *roles)
        await rate_limiter.check(name)
        return name

    return party


async def _follower(access: AccessDep, rate_limiter: RateLimiterDep, token: TokenDep, wait: Wait = 0.0) -> str:
    """Count requests that wait apart, so that a service's single requests cannot use up what it follows its adapters with."""
    name = await access.authenticate(token, *Role)
    await rate_limiter.check(f"{name}, waiting," if wait else name)
    return name


async def _audited_admin(request: Request, access: AccessDep, audit_log: AuditLogDep, token: TokenDep) -> str:
    actor = await access.authenticate(token, Role.ADMIN)
    if request.method not in ("GET", "HEAD"):
        action = f"{request.method} {request.scope['route'].path}"
        await audit_log.record(actor, action, request.url.path, correlation_id.get())
    return actor


async def _address(request: Request) -> str:
    return request.client.host if request.client else "nowhere"


AdminOnly = Depends(_audited_admin)
ClientDep = Annotated[str, Depends(_party_with(Role.CLIENT))]
Anyone = Depends(_party_with(Role.ADMIN, Role.CLIENT, Role.READER))
Follower = Depends(_follower)
AddressDep = Annotated[str, Depends(_address)]

LARGEST = 2**31 - 1
NamePath = Annotated[str, Path(pattern=NAME_PATTERN, examples=["sentiment"])]
NumberPath = Annotated[int, Path(ge=1, le=LARGEST)]
VersionPath = Annotated[int, Path(ge=0, le=LARGEST, description="a version of the coefficients")]
Limit = Annotated[int, Query(ge=1, le=1000, description="items on a page")]
After = Annotated[str | None, Query(pattern=NAME_PATTERN, description="`next` of the page before")]
AfterNumber = Annotated[int, Query(ge=0, le=LARGEST, description="`next` of the page before")]
ContextVersion = Annotated[int | None, Query(ge=1, le=LARGEST, description="a version of the context vector")]
Version = Annotated[int | None, Query(ge=0, le=LARGEST, description="a version of the coefficients")]
