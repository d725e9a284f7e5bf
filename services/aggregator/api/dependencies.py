"""Which routes take which bearer token, as FastAPI dependencies. Makes no decision of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

from asgi_correlation_id import correlation_id
from fastapi import Depends, Path, Query, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from ifed.messages.enums import Role
from ifed.messages.tasks import NAME_PATTERN
from services.aggregator.application.services import Services

_bearer = HTTPBearer(auto_error=False, description="an admin's, client's or reader's token")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


async def aggregator(request: Request) -> Services:
    """The service that the application built."""
    service = request.app.state.aggregator
    assert isinstance(service, Services)
    return service


AggregatorDep = Annotated[Services, Depends(aggregator)]


def _party_with(*roles: Role) -> Callable[[AggregatorDep, Credentials], Awaitable[str]]:
    async def recognised(service: AggregatorDep, credentials: Credentials) -> str:
        party = await service.parties.authenticate(credentials.credentials if credentials else None, *roles)
        await service.rates.check(party)
        return party

    return recognised


async def _audited_admin(request: Request, service: AggregatorDep, credentials: Credentials) -> str:
    actor = await service.parties.authenticate(credentials.credentials if credentials else None, Role.ADMIN)
    if request.method not in ("GET", "HEAD"):
        action = f"{request.method} {request.scope['route'].path}"
        await service.auditing.note(actor, action, request.url.path, correlation_id.get())
    return actor


AdminOnly = Depends(_audited_admin)
ClientDep = Annotated[str, Depends(_party_with(Role.CLIENT))]
Anyone = Depends(_party_with(Role.ADMIN, Role.CLIENT, Role.READER))
LARGEST = 2**31 - 1
NamePath = Annotated[str, Path(pattern=NAME_PATTERN, examples=["sentiment"])]
NumberPath = Annotated[int, Path(ge=1, le=LARGEST)]
Limit = Annotated[int, Query(ge=1, le=1000, description="items on a page")]
After = Annotated[str | None, Query(pattern=NAME_PATTERN, description="`next` of the page before")]
AfterNumber = Annotated[int, Query(ge=0, le=LARGEST, description="`next` of the page before")]
Wait = Annotated[float, Query(ge=0, le=300, description="seconds the answer may be held back; the service may answer sooner")]
ContextVersion = Annotated[int | None, Query(ge=1, le=LARGEST, description="a version of the context vector")]
Version = Annotated[int | None, Query(ge=0, le=LARGEST, description="a version of the coefficients")]
