"""Parties, their bearer tokens and enrolment codes, of which only hashes are stored, and the audit log."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict
from datetime import datetime, timedelta

import structlog

from ifed.errors import Forbidden, Unauthenticated, WrongState
from ifed.messages.clients import AuditLine, ClientInfo, Enrolment, EnrolmentCodeInfo, NewClient, NewEnrolment, TokenHolder
from ifed.messages.enums import Role
from ifed.messages.rounds import Page
from ifed.server.authentication import FailedAttempts, check_token_form
from services.aggregator.application import messages
from services.aggregator.application.dependencies import Dependencies
from services.aggregator.application.lifecycle import remove_from_open_round
from services.aggregator.domain.access import AuditEntry, EnrolmentCode, Party
from services.aggregator.domain.round import Round
from services.aggregator.storage.database import Database, UnitOfWork

log = structlog.get_logger(__name__)
ADMIN = "admin"
LONGEST_TARGET, LONGEST_ID = 300, 100
CODE_PREFIX = 10  # characters of an enrolment code by which wrong ones are counted: `enrol_` and four random ones
MOST_ACCEPTED = 10_000
LAST_SEEN_RESOLUTION = timedelta(seconds=30)


class Access:
    """Enrol parties, authenticate them, and rotate and revoke their tokens."""

    def __init__(self, dependencies: Dependencies, *, admin_token: str, failed_attempts: FailedAttempts) -> None:
        self._dependencies, self._admin_hash = dependencies, hash_of(admin_token)
        self._failed_attempts = failed_attempts
        self._accepted: OrderedDict[str, None] = OrderedDict()  # hashes of tokens; these are looked up without a limit
        self.last_seen = LastSeen(dependencies.database)

    async def holder(self, token: str | None, *, address: str) -> TokenHolder:
        """Return name and role of the party that holds `token`.

        Raises:
            Unauthenticated: no token, an unknown or a revoked one.
            Overloaded: too many unknown tokens came from this address, and this token was not accepted before.
        """
        token_hash = hash_of(check_token_form(token))
        if hmac.compare_digest(token_hash, self._admin_hash):
            return TokenHolder(name=ADMIN, role=Role.ADMIN)
        if token_hash in self._accepted:
            party = await self._party(token_hash)
        else:
            async with self._failed_attempts.attempt("token", address, address=address):
                party = await self._party(token_hash)
        self.last_seen.record(party, self._dependencies.clock())
        return TokenHolder(name=party.name, role=party.role)

    async def _party(self, token_hash: str) -> Party:
        async with self._dependencies.database.read_only() as work:
            party = await work.parties.by_token(token_hash)
        if party is None or party.revoked_at is not None:
            self._accepted.pop(token_hash, None)
            raise Unauthenticated("the bearer token is not known here, or it was revoked")
        self._accepted[token_hash] = None
        self._accepted.move_to_end(token_hash)
        if len(self._accepted) > MOST_ACCEPTED:
            self._accepted.popitem(last=False)
        return party

    async def enrol(self, request: NewClient) -> Enrolment:
        """Enrol a party. Its token is in the answer and is not stored.

        Raises:
            AlreadyExists: the name is taken.
        """
        token = new_token()
        async with self._dependencies.database.unit_of_work() as work:
            await work.parties.add(Party(request.name, request.role, hash_of(token), self._dependencies.clock()))
            await work.commit()
        await log.ainfo("client enrolled", client=request.name, role=request.role.value)
        return Enrolment(name=request.name, role=request.role, token=token)

    async def invite(self, request: NewEnrolment) -> EnrolmentCodeInfo:
        """Create a code that its receiver trades for a token, once and before it expires."""
        code, now = f"enrol_{secrets.token_urlsafe(24)}", self._dependencies.clock()
        expires_at = now + timedelta(seconds=request.valid_seconds)
        async with self._dependencies.database.unit_of_work() as work:
            await work.enrolments.add(EnrolmentCode(hash_of(code), request.name, request.role, now, expires_at))
            await work.commit()
        await log.ainfo("invited", client=request.name, role=request.role.value)
        return EnrolmentCodeInfo(name=request.name, role=request.role, code=code, expires_at=expires_at)

    async def redeem(self, code: str, request_id: str | None = None, *, address: str) -> Enrolment:
        """Enrol the party that a code was created for, and write an audit entry. Its token is in the answer and is not stored.

        Raises:
            Unauthenticated: the code is unknown, expired or used.
            AlreadyExists: the name was enrolled meanwhile; the code stays valid.
            Overloaded: too many wrong codes came from this address, or began like this one.
        """
        prefix = f"code {hash_of(code[:CODE_PREFIX])}"
        async with self._failed_attempts.attempt("code", address, prefix, address=address):
            return await self._redeem(code, request_id)

    async def _redeem(self, code: str, request_id: str | None) -> Enrolment:
        token, now = new_token(), self._dependencies.clock()
        async with self._dependencies.database.unit_of_work() as work:
            enrolment = await work.enrolments.take(hash_of(code), now)
            if enrolment is None:
                raise Unauthenticated("the enrolment code is not known here, has expired, or was used")
            await work.parties.add(Party(enrolment.name, enrolment.role, hash_of(token), now))
            await work.audit.add(audit_entry(now, enrolment.name, "POST /v1/enrol", "/v1/enrol", request_id))
            await work.commit()
        await log.ainfo("enrolment code redeemed", client=enrolment.name, role=enrolment.role.value)
        return Enrolment(name=enrolment.name, role=enrolment.role, token=token)

    async def rotate(self, name: str) -> Enrolment:
        """Give a party a new token; the old one becomes invalid at once.

        Raises:
            UnknownClient: there is no party of this name.
            WrongState: the party was revoked.
        """
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
        """Revoke a party permanently, and stop waiting for it in open rounds; its contributions remain. Revoking again changes nothing.

        Raises:
            UnknownClient: there is no party of this name.
        """
        now = self._dependencies.clock()
        async with self._dependencies.database.unit_of_work() as work:
            tasks = await work.memberships.tasks_of(name)
            changed = [await self._leave(work, task, name) for task in tasks]
            party = await work.parties.get(name, for_update=True)
            party.revoked_at = party.revoked_at or now
            await work.parties.save(party)
            await work.commit()
        await log.ainfo("client revoked", client=name)
        for task, round_ in zip(tasks, changed, strict=True):
            await self._dependencies.publish(task, round_)

    async def _leave(self, work: UnitOfWork, name: str, client: str) -> Round | None:
        """Remove a membership; return the round that changed state because it waited only for this client."""
        task = await work.tasks.get(name, for_update=True)
        await work.memberships.remove(name, client)
        changed = await remove_from_open_round(work, task, client, self._dependencies.clock())
        await work.tasks.save(task)
        return changed

    async def page(self, after: str | None, limit: int) -> Page[ClientInfo]:
        """Return up to `limit` parties by name, those after `after`."""
        async with self._dependencies.database.read_only() as work:
            parties = await work.parties.page(after, limit + 1)
        return messages.page([messages.client_info(party) for party in parties], limit, lambda info: info.name)


def check_role(holder: TokenHolder, *roles: Role) -> None:
    """Raise Forbidden when the holder of a token has none of the roles."""
    if holder.role not in roles:
        raise Forbidden(f"this takes the role {' or '.join(roles)}; the token is of a party with the role {holder.role}")


def hash_of(token: str) -> str:
    """Return the sha256 of a token or a code. They are long and random, so a salt would add nothing."""
    return hashlib.sha256(token.encode()).hexdigest()


def new_token() -> str:
    """Return a new bearer token of 256 random bits."""
    return f"ifed_{secrets.token_urlsafe(32)}"


class AuditLog:
    """The log of what admins requested."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies

    async def record(self, actor: str, action: str, target: str, request_id: str | None) -> None:
        """Write an entry before the request is carried out. When that fails the request fails, so nothing is missing from the log."""
        async with self._dependencies.database.unit_of_work() as work:
            await work.audit.add(audit_entry(self._dependencies.clock(), actor, action, target, request_id))
            await work.commit()

    async def page(self, after: int, limit: int) -> Page[AuditLine]:
        """Return up to `limit` entries by number, those after `after`."""
        async with self._dependencies.database.read_only() as work:
            entries = await work.audit.page(after, limit + 1)
        return messages.page([_audit_line(entry) for entry in entries], limit, lambda line: str(line.number))


def audit_entry(at: datetime, actor: str, action: str, target: str, request_id: str | None) -> AuditEntry:
    """Return an audit entry, with the target and the request id cut to the width of their columns."""
    return AuditEntry(at, actor, action, target[:LONGEST_TARGET], None if request_id is None else request_id[:LONGEST_ID])


def _audit_line(entry: AuditEntry) -> AuditLine:
    assert entry.number is not None, "it was read from the database"
    return AuditLine(
        number=entry.number, at=entry.at, actor=entry.actor, action=entry.action, target=entry.target, request_id=entry.request_id
    )


class LastSeen:
    """Buffer last-seen times, so that one transaction a tick writes them instead of one a request; losing some is harmless."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._pending: dict[str, datetime] = {}

    def record(self, party: Party, now: datetime) -> None:
        """Buffer that the party made a request now, unless the stored time is recent enough."""
        if party.last_seen_at is None or now - party.last_seen_at > LAST_SEEN_RESOLUTION:
            self._pending[party.name] = now

    async def flush(self) -> None:
        """Write the buffered times."""
        if not self._pending:
            return
        pending, self._pending = self._pending, {}
        async with self._database.unit_of_work() as work:
            await work.parties.saw(pending)
            await work.commit()
