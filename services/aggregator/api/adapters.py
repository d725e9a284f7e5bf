"""Routes that give aggregates out: context vector, coefficients, adapter. Each parses, calls, returns."""

from __future__ import annotations

from fastapi import APIRouter, Response

from ifed.errors import Forbidden, Malformed, NothingYet, Overloaded, Unauthenticated, Unavailable, UnknownTask, UnknownVersion
from ifed.server.web import refusals
from services.aggregator.api.dependencies import AggregatorDep, Anyone, ContextVersion, NamePath, Version, Wait
from services.aggregator.api.tensor_bodies import ANSWER, KnownDep, answer

router = APIRouter(
    prefix="/v1/tasks/{task}",
    tags=["aggregate"],
    dependencies=[Anyone],
    default_response_class=Response,
    responses=ANSWER | refusals(Unauthenticated, Forbidden, Malformed, Overloaded, Unavailable),
)


@router.get("/context", responses=refusals(UnknownTask, NothingYet, UnknownVersion))
async def get_context(task: NamePath, service: AggregatorDep, known: KnownDep, version: ContextVersion = None) -> Response:
    """One version of the context vector, the newest by default: tensor `context`, (layer, site, d), float16, or float32 if need be."""
    return answer(await service.serving.context(task, version), known)


@router.get("/coefficients", responses=refusals(UnknownTask, NothingYet, UnknownVersion))
async def get_coefficients(task: NamePath, service: AggregatorDep, known: KnownDep, version: Version = None) -> Response:
    """One version of the coefficients, the newest by default: tensor `coefficients`, (layer, site, λ/β, group), float32."""
    return answer(await service.serving.coefficients(task, version), known)


@router.get("/adapter", responses=refusals(UnknownTask, NothingYet, UnknownVersion))
async def get_adapter(
    task: NamePath, service: AggregatorDep, known: KnownDep, version: Version = None, wait: Wait = 0.0
) -> Response:
    """What a model needs to serve the task, held back up to `wait` seconds while it is what If-None-Match names."""
    return answer(await service.serving.adapter(task, version, known=known, wait=wait), known)
