"""Refusals that only a client agent gives. Knows no HTTP."""

from __future__ import annotations

from ifed.errors import IFedError


class CannotTakePart(IFedError):
    """The agent cannot work on this task and says what an operator should change; it does not try again by itself."""
