"""The route that tells who a token speaks for, so that other services can check the tokens they are shown."""

from __future__ import annotations

from fastapi import APIRouter

from ifed.access import TokenHolder
from ifed.errors import Unauthenticated, Unavailable
from ifed.web import refusals
from services.aggregator.endpoints_access import AggregatorDep, Credentials

router = APIRouter(prefix="/v1", tags=["access"])


@router.get("/token", responses=refusals(Unauthenticated, Unavailable))
async def get_token(service: AggregatorDep, credentials: Credentials) -> TokenHolder:
    """Name and role of the party that holds the bearer token of this request."""
    return await service.parties.holder(credentials.credentials if credentials else None)
