"""The admin route for a version's evaluation in detail."""

from __future__ import annotations

from fastapi import APIRouter

from ifed.errors import Forbidden, Malformed, NothingYet, Overloaded, Unauthenticated, Unavailable, UnknownTask
from ifed.messages.evaluations import EvaluationDetails
from ifed.server.web import refusals
from services.aggregator.api.dependencies import AdminOnly, EvaluationsDep, NamePath, PartyRoute, VersionPath

router = APIRouter(
    route_class=PartyRoute,
    prefix="/v1",
    tags=["admin"],
    dependencies=[AdminOnly],
    responses=refusals(Unauthenticated, Forbidden, Malformed, Overloaded, Unavailable),
)


@router.get("/tasks/{task}/evaluations/{version}", responses=refusals(UnknownTask, NothingYet))
async def get_evaluation(task: NamePath, version: VersionPath, evaluations: EvaluationsDep) -> EvaluationDetails:
    """Return the newest evaluation of a version of the coefficients by label and by client, with its confusion matrix."""
    return await evaluations.get(task, version)
