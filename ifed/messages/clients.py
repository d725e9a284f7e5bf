"""Messages of enrolment: parties, tokens, enrolment codes, the audit log."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from ifed.messages.enums import Role
from ifed.messages.tasks import Message, Name


class NewClient(Message):
    """A party to enrol. A reader may fetch adapters and nothing else."""

    name: Name
    role: Literal[Role.CLIENT, Role.READER] = Role.CLIENT


class Enrolment(Message):
    """A party's bearer token, shown only in this response; the aggregator stores its hash."""

    name: Name
    role: Role
    token: str


class TokenHolder(Message):
    """The party that holds a bearer token."""

    name: str = Field(examples=["north"])
    role: Role


class NewEnrolment(Message):
    """A request for a code with which one party may enrol itself once, before it expires."""

    name: Name = Field(examples=["hospital-a"])
    role: Literal[Role.CLIENT, Role.READER] = Role.CLIENT
    valid_seconds: int = Field(86_400, ge=60, le=2_592_000, description="how long the code can be traded for a token")


class EnrolmentCodeInfo(Message):
    """An enrolment code to hand to the party, shown only in this response; the aggregator stores its hash."""

    name: Name
    role: Role
    code: str = Field(examples=["enrol_XXXXXXXX"])
    expires_at: datetime


class CodeTrade(Message):
    """An enrolment code to exchange for a token."""

    code: str = Field(min_length=1, max_length=200, examples=["enrol_XXXXXXXX"])


class AuditLine(Message):
    """A request of an admin, or of a party that enrolled itself, written before it was carried out."""

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
