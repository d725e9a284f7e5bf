"""Messages of enrolment: parties, tokens, enrolment codes, the audit log."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from ifed.messages.enums import Role
from ifed.messages.tasks import Message, Name


class NewClient(Message):
    """A party to enrol. Readers fetch adapters and nothing else."""

    name: Name
    role: Literal[Role.CLIENT, Role.READER] = Role.CLIENT


class Enrolment(Message):
    """A party's bearer token, shown this once; only its hash is kept."""

    name: Name
    role: Role
    token: str


class TokenHolder(Message):
    """Who a bearer token speaks for."""

    name: str = Field(examples=["north"])
    role: Role


class NewEnrolment(Message):
    """Leave for one party to enrol itself, once and for a while."""

    name: Name = Field(examples=["hospital-a"])
    role: Literal[Role.CLIENT, Role.READER] = Role.CLIENT
    valid_seconds: int = Field(86_400, ge=60, le=2_592_000, description="how long the code can be traded for a token")


class EnrolmentCodeInfo(Message):
    """A code to hand to the party, shown this once; only its hash is kept."""

    name: Name
    role: Role
    code: str = Field(examples=["enrol_XXXXXXXX"])
    expires_at: datetime


class CodeTrade(Message):
    """An enrolment code, to be traded for a token."""

    code: str = Field(min_length=1, max_length=200, examples=["enrol_XXXXXXXX"])


class AuditLine(Message):
    """What an admin asked for, or a party that enrolled itself; written before it was done."""

    number: int
    at: datetime
    actor: str = Field(examples=["admin"])
    action: str = Field(examples=["POST /v1/tasks/{task}/start"])
    target: str = Field(examples=["/v1/tasks/sentiment/start"])
    request_id: str | None = Field(None, description="the X-Request-ID of the request, as in the log")


class ClientInfo(Message):
    """An enrolled party, without its token."""

    name: Name
    role: Role
    enrolled_at: datetime
    revoked_at: datetime | None = None
    last_seen_at: datetime | None = None
