"""Enrolled parties and who joined which task, in SQL. Makes no decision."""

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
from services.aggregator.storage.tables import audit, enrolments, memberships, parties

# Asked for with every call, so built once.
_BY_TOKEN = select(parties).where(parties.c.token_hash == bindparam("token_hash"))


class PartyRepository:
    """The repository of enrolled parties, in one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, party: Party) -> None:
        async with translate_integrity_errors(
            {"pk_parties": AlreadyExists(f"the name {party.name!r} is taken; a name is enrolled once")}
        ):
            await self._connection.execute(
                insert(parties).values(name=party.name, role=party.role.value, enrolled_at=party.enrolled_at, **_values(party))
            )

    async def get(self, name: str, *, for_update: bool = False) -> Party:
        statement = select(parties).where(parties.c.name == name)
        row = (await self._connection.execute(statement.with_for_update() if for_update else statement)).one_or_none()
        if row is None:
            raise UnknownClient(f"nobody is enrolled as {name!r}")
        return _party(row)

    async def by_token(self, token_hash: str) -> Party | None:
        row = (await self._connection.execute(_BY_TOKEN, {"token_hash": token_hash})).one_or_none()
        return None if row is None else _party(row)

    async def save(self, party: Party) -> None:
        await self._connection.execute(update(parties).where(parties.c.name == party.name).values(**_values(party)))

    async def saw(self, when: Mapping[str, datetime]) -> None:
        statement = update(parties).where(parties.c.name == bindparam("party")).values(last_seen_at=bindparam("at"))
        # In one order everywhere, so that two replicas never wait for each other in a circle.
        await self._connection.execute(statement, [{"party": name, "at": when[name]} for name in sorted(when)])

    async def page(self, after: str | None, limit: int) -> list[Party]:
        statement = select(parties).where(parties.c.name > (after or "")).order_by(parties.c.name).limit(limit)
        return [_party(row) for row in await self._connection.execute(statement)]


def _of(task: str, client: str) -> tuple[Any, Any]:
    return memberships.c.task == task, memberships.c.client == client


def _values(party: Party) -> dict[str, Any]:
    return {"token_hash": party.token_hash, "revoked_at": party.revoked_at, "last_seen_at": party.last_seen_at}


def _party(row: Row[Any]) -> Party:
    return Party(row.name, Role(row.role), row.token_hash, row.enrolled_at, row.revoked_at, row.last_seen_at)


class EnrolmentCodeRepository:
    """The repository of enrolment codes, in one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, code: EnrolmentCode) -> None:
        await self._connection.execute(insert(enrolments).values(**(asdict(code) | {"role": code.role.value})))

    async def take(self, code_hash: str, now: datetime) -> EnrolmentCode | None:
        fresh = (enrolments.c.code_hash == code_hash) & enrolments.c.used_at.is_(None) & (enrolments.c.expires_at > now)
        row = (
            await self._connection.execute(update(enrolments).where(fresh).values(used_at=now).returning(enrolments))
        ).one_or_none()
        if row is None:
            return None
        return EnrolmentCode(row.code_hash, row.name, Role(row.role), row.created_at, row.expires_at, row.used_at)


class AuditRepository:
    """The repository of the audit, in one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, entry: AuditEntry) -> None:
        said = {name: value for name, value in asdict(entry).items() if name != "number"}
        await self._connection.execute(insert(audit).values(**said))

    async def page(self, after: int, limit: int) -> list[AuditEntry]:
        found = await self._connection.execute(select(audit).where(audit.c.id > after).order_by(audit.c.id).limit(limit))
        return [AuditEntry(row.at, row.actor, row.action, row.target, row.request_id, row.id) for row in found]
