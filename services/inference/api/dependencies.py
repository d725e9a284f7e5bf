"""When a caller's patience ends, on the event loop's clock. Knows nothing else."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import Depends, Header, Path, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic.json_schema import SkipJsonSchema

from ifed import errors
from ifed.errors import Malformed, NothingYet, Overloaded, TooLarge, Unauthenticated, Unavailable, UnknownTask, UnknownVersion
from ifed.messages.inference import DEADLINE_HEADER
from ifed.server.web import refusals
from services.inference.service import Classifier


def deadline_in(seconds: float | None) -> float | None:
    """The moment in so many seconds; None is never."""
    return None if seconds is None else asyncio.get_running_loop().time() + seconds


def sooner(one: float | None, other: float | None) -> float | None:
    """The earlier of two deadlines."""
    given = [deadline for deadline in (one, other) if deadline is not None]
    return min(given, default=None)


_bearer = HTTPBearer(auto_error=False, description="a token the aggregator knows, or a key of the service's key file")
REFUSALS = refusals(
    Unauthenticated,
    Malformed,
    UnknownTask,
    UnknownVersion,
    NothingYet,
    errors.NoDemonstrations,
    errors.OtherModel,
    TooLarge,
    errors.TooManyItems,
    errors.TooManyTokens,
    errors.TextTooLong,
    errors.EmptyText,
    Overloaded,
    errors.QueueFull,
    Unavailable,
    errors.DeadlineExceeded,
)


# Asynchronous, though they wait for nothing: FastAPI runs plain functions in threads, which takes longer than they do.
async def _caller(request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> None:
    request.state.caller = await request.app.state.access.admit(credentials.credentials if credentials else None)


async def _classifier(request: Request) -> Classifier[Any, Any]:
    classifier: Classifier[Any, Any] | None = request.app.state.classifier
    if classifier is None:
        raise Unavailable(f"not ready: {request.app.state.waiting_for}; /readyz tells when it is")
    if not request.app.state.engine.alive:
        raise Unavailable("the model takes no more texts: the service is stopping, or its lane has ended, of which the log tells")
    return classifier


async def _deadline(
    seconds: Annotated[
        float | SkipJsonSchema[None],
        Header(alias=DEADLINE_HEADER, gt=0, le=86_400, description="seconds after which the answer is of no use to the caller"),
    ] = None,
) -> float | None:
    return deadline_in(seconds)


Caller = Depends(_caller)
Model = Annotated[
    str, Path(max_length=200, examples=["sentiment"], description="a task, or `task@7`, `task@bare`, `task@few-shot:12`")
]
Version = Annotated[int, Path(ge=0, examples=[7], description="a version of the task")]
ClassifierDep = Annotated[Classifier[Any, Any], Depends(_classifier)]
DeadlineDep = Annotated[float | None, Depends(_deadline)]
