"""Dependencies of the routes: an authenticated caller, the classifier, and the deadline of the request."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import Depends, Header, Path, Request
from fastapi.security import HTTPBearer
from pydantic.json_schema import SkipJsonSchema

from ifed import errors
from ifed.errors import Malformed, NothingYet, Overloaded, TooLarge, Unauthenticated, Unavailable, UnknownTask, UnknownVersion
from ifed.messages.inference import DEADLINE_HEADER
from ifed.server.authentication import address_of, token_of
from ifed.server.bodies import JsonRoute
from ifed.server.web import refusals
from services.inference.service import Classifier

REFUSALS = refusals(
    Unauthenticated,
    Malformed,
    UnknownTask,
    UnknownVersion,
    NothingYet,
    errors.NoDemonstrations,
    errors.OtherModel,
    errors.BodyTimeout,
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
_bearer = HTTPBearer(auto_error=False, description="a token that the aggregator knows, or a key of the service's key file")


def deadline_in(seconds: float | None) -> float | None:
    """Return the time on the event loop's clock that is `seconds` from now; None without a limit."""
    return None if seconds is None else asyncio.get_running_loop().time() + seconds


def earlier(first: float | None, second: float | None) -> float | None:
    """Return the earlier of two deadlines; None is no deadline."""
    deadlines = [deadline for deadline in (first, second) if deadline is not None]
    return min(deadlines, default=None)


# These are coroutines although they await little: FastAPI runs plain functions in a thread, which costs more than they do.
async def _authenticate(request: Request, _credentials: Annotated[object, Depends(_bearer)] = None) -> None:
    if getattr(request.state, "caller", None) is None:  # a route with a JSON body has done so before it read the body
        token = await token_of(request, _bearer)
        request.state.caller = await request.app.state.authenticator.authenticate(token, address=address_of(request))


class CallerRoute(JsonRoute):
    """A route that takes a body only from a caller who may classify."""

    async def authenticate(self, request: Request) -> None:
        """Raise Unauthenticated unless the request has the token of a caller."""
        await _authenticate(request)


async def _classifier(request: Request) -> Classifier:
    classifier: Classifier | None = request.app.state.classifier
    if classifier is None:
        raise Unavailable(f"the service is not ready: {request.app.state.loading_status}; /readyz says when it is")
    if not request.app.state.engine.alive:
        raise Unavailable("the engine has stopped: the service is shutting down, or the engine has failed and the log says why")
    return classifier.for_caller(getattr(request.state, "caller", None))  # readiness is asked without a caller


async def _deadline(
    seconds: Annotated[
        float | SkipJsonSchema[None],
        Header(alias=DEADLINE_HEADER, gt=0, le=86_400, description="seconds after which the caller no longer needs the answer"),
    ] = None,
) -> float | None:
    return deadline_in(seconds)


Caller = Depends(_authenticate)
ClassifierDep = Annotated[Classifier, Depends(_classifier)]
DeadlineDep = Annotated[float | None, Depends(_deadline)]
Model = Annotated[
    str, Path(max_length=200, examples=["sentiment"], description="a task, or `task@7`, `task@base`, `task@few-shot:12`")
]
Version = Annotated[int, Path(ge=0, examples=[7], description="a version of the task's adapter")]
