"""The HTTP API of the aggregator."""

from __future__ import annotations

from starlette.routing import BaseRoute

from services.aggregator.api import adapters, clients, evaluations, events, participation, rounds, tasks


def all_routes() -> list[BaseRoute]:
    """Return every route of the API. `FastAPI.include_router` would analyse each again at the first request, for half a second."""
    parts = (
        tasks.router,
        rounds.router,
        evaluations.router,
        clients.router,
        clients.others,
        clients.public,
        events.router,
        participation.router,
        adapters.router,
    )
    return [route for part in parts for route in part.routes]
