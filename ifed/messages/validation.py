"""Pydantic's validation errors in the words of a refusal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def field_problems(errors: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return the dotted path of each invalid field and what is wrong with it, such as `("policy.rounds", "Field required")`.

    Args:
        errors: what `errors()` of a pydantic or FastAPI validation error returns.
    """
    return [(".".join(map(str, error["loc"])), str(error["msg"])) for error in errors]


def describe_errors(errors: Iterable[Mapping[str, Any]]) -> str:
    """Return all problems on one line: `policy.rounds: Field required; labels.0: Input should be a valid string`.

    Args:
        errors: what `errors()` of a pydantic or FastAPI validation error returns.
    """
    return "; ".join(f"{field}: {problem}" for field, problem in field_problems(errors))
