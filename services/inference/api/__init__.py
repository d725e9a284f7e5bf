"""The HTTP API of the inference service."""

from __future__ import annotations

from starlette.routing import BaseRoute

from services.inference.api import classify, hub, open_inference


def all_routes() -> list[BaseRoute]:
    """Return every route of the API. `FastAPI.include_router` would analyse each again for every application."""
    parts = (classify.router, hub.router, open_inference.health, open_inference.router)
    return [route for part in parts for route in part.routes]
