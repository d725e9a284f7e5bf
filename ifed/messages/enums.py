"""The enumerations of the HTTP API: roles, states and kinds."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """The role of the party that holds a token."""

    ADMIN = "admin"
    CLIENT = "client"
    READER = "reader"


class TaskState(StrEnum):
    """The state of a task."""

    DRAFT = "draft"
    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    FAILED = "failed"


class RoundKind(StrEnum):
    """What clients contribute in a round: context vectors, answers for the label head, updates, or evaluations only."""

    CONTEXT = "context"
    HEAD = "head"
    CALIBRATION = "calibration"
    EVALUATION = "evaluation"


class HeadQuestion(StrEnum):
    """What a head round asks of each client's examples."""

    SUMS = "sums"
    MOMENT = "moment"
    PRODUCT = "product"
    LIKELIHOOD = "likelihood"


class HeadState(StrEnum):
    """The label head of a version: none, taken over from the version before, or solved on this version's own states."""

    NONE = "none"
    CARRIED = "carried"
    SOLVED = "solved"


class RoundState(StrEnum):
    """The state of a round; the last three are final."""

    OPEN = "open"
    AGGREGATING = "aggregating"
    CLOSED = "closed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class AssignmentKind(StrEnum):
    """What a client should do next."""

    JOIN = "join"
    WAIT = "wait"
    CONTEXT = "context"
    HEAD = "head"
    CALIBRATION = "calibration"
    EVALUATION = "evaluation"
    ADDITION = "addition"
    DONE = "done"
    WITHDRAWN = "withdrawn"
