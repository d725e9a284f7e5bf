"""The path and query parameters that routes share."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query

from ifed.tasks import NAME_PATTERN

LARGEST = 2**31 - 1

NamePath = Annotated[str, Path(pattern=NAME_PATTERN, examples=["sentiment"])]
NumberPath = Annotated[int, Path(ge=1, le=LARGEST)]
Limit = Annotated[int, Query(ge=1, le=1000, description="items on a page")]
After = Annotated[str | None, Query(pattern=NAME_PATTERN, description="`next` of the page before")]
AfterNumber = Annotated[int, Query(ge=0, le=LARGEST, description="`next` of the page before")]
Wait = Annotated[float, Query(ge=0, le=300, description="seconds the answer may be held back; the service may answer sooner")]
ContextVersion = Annotated[int | None, Query(ge=1, le=LARGEST, description="a version of the context vector")]
Version = Annotated[int | None, Query(ge=0, le=LARGEST, description="a version of the coefficients")]
