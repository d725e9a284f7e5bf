"""FastAPI dependencies: the use cases, who may call, and the parameters that several routes share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

from asgi_correlation_id import correlation_id
from fastapi import Depends, Path, Query, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from ifed.messages.enums import Role
from ifed.messages.tasks import NAME_PATTERN
from services.aggregator.application.access import Access, AuditLog
from services.aggregator.application.adapters import AdapterStore
from services.aggregator.application.events import EventStream, Webhooks
from services.aggregator.application.participation import Participation
from services.aggregator.application.rounds import Ledger, RoundService
from services.aggregator.application.services import Services
from services.aggregator.application.similarity import TaskSimilarity
from services.aggregator.application.tasks import TaskService
from services.aggregator.runtime.rate_limit import RateLimiter


async def _services(request: Request) -> Services:
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


ServicesDep = Annotated[Services, Depends(_services)]


async def _access(services: ServicesDep) -> Access:
    return services.access


async def _audit_log(services: ServicesDep) -> AuditLog:
    return services.audit_log


async def _rate_limiter(services: ServicesDep) -> RateLimiter:
    return services.rate_limiter


async def _tasks(services: ServicesDep) -> TaskService:
    return services.tasks


async def _rounds(services: ServicesDep) -> RoundService:
    return services.rounds


async def _ledger(services: ServicesDep) -> Ledger:
    return services.ledger


async def _participation(services: ServicesDep) -> Participation:
    return services.participation


async def _adapters(services: ServicesDep) -> AdapterStore:
    return services.adapters


async def _similarity(services: ServicesDep) -> TaskSimilarity:
    return services.similarity


async def _event_stream(services: ServicesDep) -> EventStream:
    return services.event_stream


async def _webhooks(services: ServicesDep) -> Webhooks:
    return services.webhooks


AccessDep = Annotated[Access, Depends(_access)]
AuditLogDep = Annotated[AuditLog, Depends(_audit_log)]
RateLimiterDep = Annotated[RateLimiter, Depends(_rate_limiter)]
TasksDep = Annotated[TaskService, Depends(_tasks)]
RoundsDep = Annotated[RoundService, Depends(_rounds)]
LedgerDep = Annotated[Ledger, Depends(_ledger)]
ParticipationDep = Annotated[Participation, Depends(_participation)]
AdaptersDep = Annotated[AdapterStore, Depends(_adapters)]
SimilarityDep = Annotated[TaskSimilarity, Depends(_similarity)]
EventStreamDep = Annotated[EventStream, Depends(_event_stream)]
WebhooksDep = Annotated[Webhooks, Depends(_webhooks)]

_bearer = HTTPBearer(auto_error=False, description="an admin's, client's or reader's token")


async def _token(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> str | None:
    return credentials.credentials if credentials else None


TokenDep = Annotated[str | None, Depends(_token)]


def _party_with(*roles: Role) -> Callable[[AccessDep, RateLimiterDep, TokenDep], Awaitable[str]]:
    async def party(access: AccessDep, rate_limiter: RateLimiterDep, token: TokenDep) -> str:
        name = await access.authenticate(token, *roles)
        await rate_limiter.check(name)
        return name

    return party


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
AddressDep = Annotated[str, Depends(_address)]

LARGEST = 2**31 - 1
NamePath = Annotated[str, Path(pattern=NAME_PATTERN, examples=["sentiment"])]
NumberPath = Annotated[int, Path(ge=1, le=LARGEST)]
Limit = Annotated[int, Query(ge=1, le=1000, description="items on a page")]
After = Annotated[str | None, Query(pattern=NAME_PATTERN, description="`next` of the page before")]
AfterNumber = Annotated[int, Query(ge=0, le=LARGEST, description="`next` of the page before")]
Wait = Annotated[float, Query(ge=0, le=300, description="seconds the answer may be held back; the service may answer sooner")]
ContextVersion = Annotated[int | None, Query(ge=1, le=LARGEST, description="a version of the context vector")]
Version = Annotated[int | None, Query(ge=0, le=LARGEST, description="a version of the coefficients")]
