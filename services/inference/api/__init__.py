"""The HTTP API of the inference service."""

from __future__ import annotations

from fastapi import APIRouter

from services.inference.api import classify, hub, open_inference


def all_routes() -> APIRouter:
    """Return one router with every route of the API."""
    router = APIRouter()
    for part in (classify.router, hub.router, open_inference.health, open_inference.router):
        router.include_router(part)
    return router
