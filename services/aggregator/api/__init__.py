"""The HTTP API of the aggregator."""

from __future__ import annotations

from fastapi import APIRouter

from services.aggregator.api import adapters, clients, evaluations, events, participation, rounds, tasks


def all_routes() -> APIRouter:
    """Return one router with all routes."""
    router = APIRouter()
    for part in (
        tasks.router,
        rounds.router,
        evaluations.router,
        clients.router,
        clients.others,
        clients.public,
        events.router,
        participation.router,
        adapters.router,
    ):
        router.include_router(part)
    return router
