"""Who may call: parties, enrolment codes, and the audit log of admin requests."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ifed.messages.enums import Role


@dataclass(slots=True)
class Party:
    """The holder of a bearer token. Only the sha256 of the token is stored.

    Attributes:
        token_hash: sha256 of the token, in hexadecimal.
        revoked_at: when the token was revoked; None while it is valid.
    """

    name: str
    role: Role
    token_hash: str
    enrolled_at: datetime
    revoked_at: datetime | None = None
    last_seen_at: datetime | None = None


@dataclass(slots=True)
class EnrolmentCode:
    """A code with which one party may enrol itself, once and until it expires. Only the sha256 of the code is stored."""

    code_hash: str
    name: str
    role: Role
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """A request that an admin made, written before it was carried out.

    Attributes:
        action: method and route, such as `POST /v1/tasks/{task}/start`.
        target: the path of the request.
        number: the position in the audit log; None until it is stored.
    """

    at: datetime
    actor: str
    action: str
    target: str
    request_id: str | None
    number: int | None = None
