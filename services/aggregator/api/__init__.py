"""The HTTP API of the aggregator, one router."""

from __future__ import annotations

from fastapi import APIRouter

from services.aggregator.api import adapters, clients, events, participation, rounds, tasks


def all_routes() -> APIRouter:
    """Return the routes for admins, for clients and for everyone who fetches aggregates."""
    router = APIRouter()
    for part in (tasks.router, rounds.router, clients.router, clients.access, events.router, participation.router, adapters.router):
        router.include_router(part)
    return router
