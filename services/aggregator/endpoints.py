"""All routes of the aggregator, in one router."""

from __future__ import annotations

from fastapi import APIRouter

from services.aggregator import (
    endpoints_admin,
    endpoints_aggregate,
    endpoints_client,
    endpoints_context,
    endpoints_enrolment,
    endpoints_events,
    endpoints_history,
    endpoints_token,
)


def all_routes() -> APIRouter:
    """The routes for admins, for clients, and for everyone who fetches aggregates."""
    router = APIRouter()
    admins = (endpoints_admin, endpoints_history, endpoints_enrolment, endpoints_events)
    clients = (endpoints_client, endpoints_context)
    for part in (*admins, *clients, endpoints_aggregate, endpoints_token):
        router.include_router(part.router)
    return router
