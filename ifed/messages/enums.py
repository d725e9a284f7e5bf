"""The enumerations of the HTTP API: roles, states and kinds."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """Who a bearer token speaks for."""

    ADMIN = "admin"
    CLIENT = "client"
    READER = "reader"


class TaskState(StrEnum):
    """Where a task stands."""

    DRAFT = "draft"
    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    FAILED = "failed"


class RoundKind(StrEnum):
    """What a round gathers: vectors, updates, or evaluations alone."""

    CONTEXT = "context"
    CALIBRATION = "calibration"
    EVALUATION = "evaluation"


class RoundState(StrEnum):
    """Where a round stands; the last three are final."""

    OPEN = "open"
    AGGREGATING = "aggregating"
    CLOSED = "closed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class AssignmentKind(StrEnum):
    """What a client is asked to do next."""

    JOIN = "join"
    WAIT = "wait"
    CONTEXT = "context"
    CALIBRATION = "calibration"
    EVALUATION = "evaluation"
    ADDITION = "addition"
    DONE = "done"
    WITHDRAWN = "withdrawn"
