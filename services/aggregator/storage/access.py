"""The SQL of parties, enrolment codes and the audit log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import Row, bindparam, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ifed.errors import AlreadyExists, UnknownClient
from ifed.messages.enums import Role
from services.aggregator.domain.access import AuditEntry, EnrolmentCode, Party
from services.aggregator.storage.constraints import translate_integrity_errors
from services.aggregator.storage.tables import audit, enrolments, parties

# Every request runs this statement, so it is built once.
_BY_TOKEN = select(parties).where(parties.c.token_hash == bindparam("token_hash"))


class PartyRepository:
    """Parties, which are clients and readers, with the hashes of their tokens."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, party: Party) -> None:
        """Store a new party.

        Raises:
            AlreadyExists: the name is taken.
        """
        async with translate_integrity_errors(
            {"pk_parties": AlreadyExists(f"the name {party.name!r} is taken; a name is enrolled once")}
        ):
            await self._connection.execute(
                insert(parties).values(name=party.name, role=party.role.value, enrolled_at=party.enrolled_at, **_values(party))
            )

    async def get(self, name: str, *, for_update: bool = False) -> Party:
        """Return the party, locked until the transaction ends when `for_update` is set.

        Raises:
            UnknownClient: there is no party of this name.
        """
        statement = select(parties).where(parties.c.name == name)
        row = (await self._connection.execute(statement.with_for_update() if for_update else statement)).one_or_none()
        if row is None:
            raise UnknownClient(f"nobody is enrolled as {name!r}")
        return _party(row)

    async def by_token(self, token_hash: str) -> Party | None:
        """Return the party whose token has this hash, or None."""
        row = (await self._connection.execute(_BY_TOKEN, {"token_hash": token_hash})).one_or_none()
        return None if row is None else _party(row)

    async def save(self, party: Party) -> None:
        """Write the token, the revocation and the last-seen time of a party."""
        await self._connection.execute(update(parties).where(parties.c.name == party.name).values(**_values(party)))

    async def saw(self, when: Mapping[str, datetime]) -> None:
        """Write only the last-seen times of parties, by name."""
        statement = update(parties).where(parties.c.name == bindparam("party")).values(last_seen_at=bindparam("at"))
        # Every replica locks the rows in this order, so two of them cannot deadlock.
        await self._connection.execute(statement, [{"party": name, "at": when[name]} for name in sorted(when)])

    async def page(self, after: str | None, limit: int) -> list[Party]:
        """Return up to `limit` parties by name, those after `after`."""
        statement = select(parties).where(parties.c.name > (after or "")).order_by(parties.c.name).limit(limit)
        return [_party(row) for row in await self._connection.execute(statement)]


def _values(party: Party) -> dict[str, Any]:
    return {"token_hash": party.token_hash, "revoked_at": party.revoked_at, "last_seen_at": party.last_seen_at}


def _party(row: Row[Any]) -> Party:
    return Party(row.name, Role(row.role), row.token_hash, row.enrolled_at, row.revoked_at, row.last_seen_at)


class EnrolmentCodeRepository:
    """Enrolment codes by their hash."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, code: EnrolmentCode) -> None:
        """Store a new code."""
        await self._connection.execute(insert(enrolments).values(**(asdict(code) | {"role": code.role.value})))

    async def take(self, code_hash: str, now: datetime) -> EnrolmentCode | None:
        """Mark the code as used and return it; None when it is unknown, used or expired. Of two concurrent callers one gets it."""
        valid = (enrolments.c.code_hash == code_hash) & enrolments.c.used_at.is_(None) & (enrolments.c.expires_at > now)
        statement = update(enrolments).where(valid).values(used_at=now).returning(enrolments)
        row = (await self._connection.execute(statement)).one_or_none()
        if row is None:
            return None
        return EnrolmentCode(row.code_hash, row.name, Role(row.role), row.created_at, row.expires_at, row.used_at)


class AuditRepository:
    """The audit log, which only grows."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, entry: AuditEntry) -> None:
        """Append an entry; the database numbers it."""
        values = {name: value for name, value in asdict(entry).items() if name != "number"}
        await self._connection.execute(insert(audit).values(**values))

    async def page(self, after: int, limit: int) -> list[AuditEntry]:
        """Return up to `limit` entries by number, those after `after`."""
        rows = await self._connection.execute(select(audit).where(audit.c.id > after).order_by(audit.c.id).limit(limit))
        return [AuditEntry(row.at, row.actor, row.action, row.target, row.request_id, row.id) for row in rows]
