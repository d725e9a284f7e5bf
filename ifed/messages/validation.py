"""Pydantic's validation errors in the words of a refusal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

MOST_PROBLEMS = 10
LONGEST_FIELD, LONGEST_PROBLEM = 100, 300


def field_problems(errors: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return the dotted path of each invalid field and what is wrong with it, such as `("policy.rounds", "Field required")`.

    Args:
        errors: what `errors()` of a pydantic or FastAPI validation error returns.
    """
    return [(".".join(map(str, error["loc"])), str(error["msg"])) for error in errors]


def describe_errors(errors: Iterable[Mapping[str, Any]]) -> str:
    """Return the first problems on one line: `policy.rounds: Field required; labels.0: Input should be a valid string`.

    At most `MOST_PROBLEMS` are named and each is cut, because the fields and values of a request are as long as its caller likes.

    Args:
        errors: what `errors()` of a pydantic or FastAPI validation error returns.
    """
    problems = field_problems(errors)
    named = [f"{shorten(field, LONGEST_FIELD)}: {shorten(problem, LONGEST_PROBLEM)}" for field, problem in problems[:MOST_PROBLEMS]]
    further = len(problems) - len(named)
    return "; ".join([*named, f"and {further} more"] if further else named)


def shorten(text: str, longest: int) -> str:
    """Return a text of at most `longest` characters that can be sent in UTF-8; a longer one ends in `…`."""
    readable = text[: longest + 1].encode("utf-8", "replace").decode("utf-8")
    return readable if len(readable) <= longest else f"{readable[: longest - 1]}…"
