"""Routes that serve aggregates: context vector, coefficients, adapter."""

from __future__ import annotations

from fastapi import APIRouter, Response

from ifed.errors import Forbidden, Malformed, NothingYet, Overloaded, Unauthenticated, Unavailable, UnknownTask, UnknownVersion
from ifed.server.web import refusals
from services.aggregator.api.dependencies import (
    AdaptersDep,
    Anyone,
    CallerDep,
    ContextVersion,
    Follower,
    NamePath,
    PartyRoute,
    Version,
    Wait,
)
from services.aggregator.api.tensor_bodies import TENSOR_RESPONSES, KnownDep, tensor_response

router = APIRouter(
    route_class=PartyRoute,
    prefix="/v1/tasks/{task}",
    tags=["aggregate"],
    default_response_class=Response,
    responses=TENSOR_RESPONSES | refusals(Unauthenticated, Forbidden, Malformed, Overloaded, Unavailable),
)


@router.get("/context", dependencies=[Anyone], responses=refusals(UnknownTask, NothingYet, UnknownVersion))
async def get_context(task: NamePath, adapters: AdaptersDep, known: KnownDep, version: ContextVersion = None) -> Response:
    """Return one version of the context vector, the newest by default: tensor `context`, (layer, site, d), float16, or float32 where a value does not fit float16."""
    return tensor_response(await adapters.context(task, version), known)


@router.get("/coefficients", dependencies=[Anyone], responses=refusals(UnknownTask, NothingYet, UnknownVersion))
async def get_coefficients(task: NamePath, adapters: AdaptersDep, known: KnownDep, version: Version = None) -> Response:
    """Return one version of the coefficients, the newest by default: tensor `coefficients`, (layer, site, λ/β, group), float32."""
    return tensor_response(await adapters.coefficients(task, version), known)


@router.get("/adapter", dependencies=[Follower], responses=refusals(UnknownTask, NothingYet, UnknownVersion))
async def get_adapter(
    task: NamePath, adapters: AdaptersDep, known: KnownDep, caller: CallerDep, version: Version = None, wait: Wait = 0.0
) -> Response:
    """Return the adapter of `version`, by default of the version that the task serves.

    Wait up to `wait` seconds while the caller already has it (If-None-Match) or no version is served yet; then answer 304, or refuse
    with NothingYet. A caller that has an adapter is refused at once when no version is served any more. Requests that wait are counted
    apart from the caller's other requests.
    """
    return tensor_response(await adapters.adapter(task, version, known=known, wait=wait, caller=caller), known)
