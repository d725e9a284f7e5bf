"""Which routes take which bearer token, as FastAPI dependencies. Makes no decision of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

from asgi_correlation_id import correlation_id
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from ifed.states import Role
from services.aggregator.service import Aggregator

_bearer = HTTPBearer(auto_error=False, description="an admin's, client's or reader's token")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


async def aggregator(request: Request) -> Aggregator:
    """The service that the application built."""
    service = request.app.state.aggregator
    assert isinstance(service, Aggregator)
    return service


AggregatorDep = Annotated[Aggregator, Depends(aggregator)]


def _party_with(*roles: Role) -> Callable[[AggregatorDep, Credentials], Awaitable[str]]:
    async def recognised(service: AggregatorDep, credentials: Credentials) -> str:
        party = await service.parties.recognise(credentials.credentials if credentials else None, *roles)
        await service.rates.admit(party)
        return party

    return recognised


async def _audited_admin(request: Request, service: AggregatorDep, credentials: Credentials) -> str:
    actor = await service.parties.recognise(credentials.credentials if credentials else None, Role.ADMIN)
    if request.method not in ("GET", "HEAD"):
        action = f"{request.method} {request.scope['route'].path}"
        await service.auditing.note(actor, action, request.url.path, correlation_id.get())
    return actor


AdminOnly = Depends(_audited_admin)
ClientDep = Annotated[str, Depends(_party_with(Role.CLIENT))]
Anyone = Depends(_party_with(Role.ADMIN, Role.CLIENT, Role.READER))
