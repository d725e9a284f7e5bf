"""Who may call: parties and their bearer tokens, of which only hashes are kept. Knows no HTTP and no SQL."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from datetime import datetime, timedelta

import structlog

from ifed.errors import Forbidden, Unauthenticated, WrongState
from ifed.messages.clients import AuditLine, ClientInfo, Enrolment, EnrolmentCodeInfo, NewClient, NewEnrolment, TokenHolder
from ifed.messages.enums import Role
from ifed.messages.rounds import Page
from services.aggregator.application import messages
from services.aggregator.application.dependencies import Dependencies
from services.aggregator.application.lifecycle import remove_from_open_round
from services.aggregator.domain.access import AuditEntry, EnrolmentCode, Party
from services.aggregator.domain.round import Round
from services.aggregator.storage.database import Database, UnitOfWork

log = structlog.get_logger(__name__)
ADMIN = "admin"


class Access:
    """Enrols, recognises and revokes."""

    def __init__(self, dependencies: Dependencies, *, admin_token: str) -> None:
        self._dependencies, self._admin_hash = dependencies, hash_of(admin_token)
        self.presence = LastSeen(dependencies.database)

    async def authenticate(self, token: str | None, *roles: Role) -> str:
        """The name of the party that holds `token`.

        Raises:
            Unauthenticated: no token, an unknown or a revoked one.
            Forbidden: a token of another role than `roles`.
        """
        holder = await self.holder(token)
        if holder.role not in roles:
            raise Forbidden(f"this takes the role {' or '.join(roles)}; the token is of a party with the role {holder.role}")
        return holder.name

    async def holder(self, token: str | None) -> TokenHolder:
        """Who `token` speaks for.

        Raises:
            Unauthenticated: no token, an unknown or a revoked one.
        """
        if token is None:
            raise Unauthenticated("send a bearer token: Authorization: Bearer …")
        role, name = await self._holder(hash_of(token))
        return TokenHolder(name=name, role=role)

    async def _holder(self, token_hash: str) -> tuple[Role, str]:
        if hmac.compare_digest(token_hash, self._admin_hash):
            return Role.ADMIN, ADMIN
        async with self._dependencies.database.read_only() as work:
            party = await work.parties.by_token(token_hash)
        if party is None or party.revoked_at is not None:
            raise Unauthenticated("the bearer token is not known here, or it was revoked")
        self.presence.note(party, self._dependencies.clock())
        return party.role, party.name

    async def enrol(self, request: NewClient) -> Enrolment:
        """Add a party; its token is in the answer and nowhere else."""
        token = new_token()
        async with self._dependencies.database.unit_of_work() as work:
            await work.parties.add(Party(request.name, request.role, hash_of(token), self._dependencies.clock()))
            await work.commit()
        await log.ainfo("enrolled", client=request.name, role=request.role.value)
        return Enrolment(name=request.name, role=request.role, token=token)

    async def invite(self, request: NewEnrolment) -> EnrolmentCodeInfo:
        """A code that its party trades for a token: once, and before it expires."""
        code, now = f"enrol_{secrets.token_urlsafe(24)}", self._dependencies.clock()
        expires_at = now + timedelta(seconds=request.valid_seconds)
        async with self._dependencies.database.unit_of_work() as work:
            await work.enrolments.add(EnrolmentCode(hash_of(code), request.name, request.role, now, expires_at))
            await work.commit()
        await log.ainfo("invited", client=request.name, role=request.role.value)
        return EnrolmentCodeInfo(name=request.name, role=request.role, code=code, expires_at=expires_at)

    async def redeem(self, code: str, request_id: str | None = None) -> Enrolment:
        """Enrol whom a code is for, and write that into the audit; its token is in the answer and nowhere else.

        Raises:
            Unauthenticated: the code is unknown, expired or used.
            AlreadyExists: the name was enrolled meanwhile; the code stays good.
        """
        token, now = new_token(), self._dependencies.clock()
        async with self._dependencies.database.unit_of_work() as work:
            found = await work.enrolments.take(hash_of(code), now)
            if found is None:
                raise Unauthenticated("the enrolment code is not known here, has expired, or was used")
            await work.parties.add(Party(found.name, found.role, hash_of(token), now))
            await work.audit.add(line(now, found.name, "POST /v1/enrol", "/v1/enrol", request_id))
            await work.commit()
        await log.ainfo("enrolled by code", client=found.name, role=found.role.value)
        return Enrolment(name=found.name, role=found.role, token=token)

    async def rotate(self, name: str) -> Enrolment:
        """A new token; the old one ends at once."""
        token = new_token()
        async with self._dependencies.database.unit_of_work() as work:
            party = await work.parties.get(name, for_update=True)
            if party.revoked_at is not None:
                raise WrongState(f"{name} was revoked; enrol it under another name")
            party.token_hash = hash_of(token)
            await work.parties.save(party)
            await work.commit()
        await log.ainfo("token rotated", client=name)
        return Enrolment(name=name, role=party.role, token=token)

    async def revoke(self, name: str) -> None:
        """End a party's token for good and stop waiting for it; what it contributed stays. A second time changes nothing."""
        now = self._dependencies.clock()
        async with self._dependencies.database.unit_of_work() as work:
            tasks = await work.memberships.tasks_of(name)
            changed = [await self._leave(work, task, name) for task in tasks]
            party = await work.parties.get(name, for_update=True)
            party.revoked_at = party.revoked_at or now
            await work.parties.save(party)
            await work.commit()
        await log.ainfo("revoked", client=name)
        for task, round_ in zip(tasks, changed, strict=True):
            await self._dependencies.publish(task, round_)

    async def _leave(self, work: UnitOfWork, name: str, client: str) -> Round | None:
        """Drop a membership; the round that changed state because it waited for this client alone."""
        task = await work.tasks.get(name, for_update=True)
        await work.memberships.remove(name, client)
        changed = await remove_from_open_round(work, task, client, self._dependencies.clock())
        await work.tasks.save(task)
        return changed

    async def page(self, after: str | None, limit: int) -> Page[ClientInfo]:
        """Parties by name."""
        async with self._dependencies.database.read_only() as work:
            found = await work.parties.page(after, limit + 1)
        return messages.page([messages.client_info(party) for party in found], limit, lambda party: party.name)


def hash_of(token: str) -> str:
    """What is kept of a token. Tokens are random and long, so a plain sha256 cannot be searched back."""
    return hashlib.sha256(token.encode()).hexdigest()


def new_token() -> str:
    """A fresh bearer token of 256 random bits."""
    return f"ifed_{secrets.token_urlsafe(32)}"


LONGEST_TARGET, LONGEST_ID = 300, 100


class AuditLog:
    """Writes lines, and shows them."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies

    async def note(self, actor: str, action: str, target: str, request_id: str | None) -> None:
        """Write a line. When that fails the request fails, so nothing is done that is not in the audit."""
        async with self._dependencies.database.unit_of_work() as work:
            await work.audit.add(line(self._dependencies.clock(), actor, action, target, request_id))
            await work.commit()

    async def page(self, after: int, limit: int) -> Page[AuditLine]:
        """Lines by number."""
        async with self._dependencies.database.read_only() as work:
            found = await work.audit.page(after, limit + 1)
        return messages.page([_line(entry) for entry in found], limit, lambda line: str(line.number))


def line(at: datetime, actor: str, action: str, target: str, request_id: str | None) -> AuditEntry:
    """A line that fits into the table."""
    return AuditEntry(at, actor, action, target[:LONGEST_TARGET], None if request_id is None else request_id[:LONGEST_ID])


def _line(entry: AuditEntry) -> AuditLine:
    assert entry.number is not None, "it was read from the audit"
    return AuditLine(
        number=entry.number, at=entry.at, actor=entry.actor, action=entry.action, target=entry.target, request_id=entry.request_id
    )


SEEN_EVERY = timedelta(seconds=30)


class LastSeen:
    """Notes parties that were not seen for a while; one transaction a tick writes them, instead of one for every call."""

    def __init__(self, database: Database) -> None:
        self._store = database
        self._noted: dict[str, datetime] = {}

    def note(self, party: Party, now: datetime) -> None:
        """Remember that the party calls now, unless that is known."""
        if party.last_seen_at is None or now - party.last_seen_at > SEEN_EVERY:
            self._noted[party.name] = now

    async def write(self) -> None:
        """Keep what was noted since."""
        if not self._noted:
            return
        noted, self._noted = self._noted, {}
        async with self._store.unit_of_work() as work:
            await work.parties.saw(noted)
            await work.commit()
