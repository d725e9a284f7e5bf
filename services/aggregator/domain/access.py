"""What is kept besides rounds and tasks: parties, members, and the aggregates. Plain values: knows no database and no HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ifed.messages.enums import Role


@dataclass(slots=True)
class Party:
    """Who a bearer token speaks for; only the token's sha256 is kept."""

    name: str
    role: Role
    token_hash: str
    enrolled_at: datetime
    revoked_at: datetime | None = None
    last_seen_at: datetime | None = None


@dataclass(slots=True)
class EnrolmentCode:
    """Leave for one party to enrol itself once, for a while; only the code's sha256 is kept."""

    code_hash: str
    name: str
    role: Role
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One line of the audit: who asked for what, before it was done.

    Attributes:
        action: method and route, such as `POST /v1/tasks/{task}/start`.
        target: the path that was asked for.
        number: counts the lines; None until it is kept.
    """

    at: datetime
    actor: str
    action: str
    target: str
    request_id: str | None
    number: int | None = None
