"""Enrolled parties and who joined which task, in SQL. Makes no decision."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Row, bindparam, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ifed.errors import AlreadyExists, UnknownClient
from ifed.states import Role
from services.aggregator.constraints import refusing
from services.aggregator.records import Membership, Party
from services.aggregator.tables import memberships, parties

# Asked for with every call, so built once.
_BY_TOKEN = select(parties).where(parties.c.token_hash == bindparam("token_hash"))
_MEMBER = select(memberships).where(memberships.c.task == bindparam("task"), memberships.c.client == bindparam("client"))


class StoredParties:
    """The repository of enrolled parties, in one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, party: Party) -> None:
        async with refusing({"pk_parties": AlreadyExists(f"the name {party.name!r} is taken; a name is enrolled once")}):
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


class StoredMemberships:
    """The repository of memberships, in one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def put(self, membership: Membership) -> None:
        counts = {
            "label_counts": dict(membership.label_counts),
            "holdout": membership.holdout,
            "withdrawn_at": membership.withdrawn_at,
        }
        changed = await self._connection.execute(
            update(memberships).where(*_of(membership.task, membership.client)).values(**counts)
        )
        if changed.rowcount == 0:
            await self._connection.execute(
                insert(memberships).values(task=membership.task, client=membership.client, joined_at=membership.joined_at, **counts)
            )

    async def find(self, task: str, client: str) -> Membership | None:
        row = (await self._connection.execute(_MEMBER, {"task": task, "client": client})).one_or_none()
        return None if row is None else _membership(row)

    async def of_task(self, task: str) -> list[Membership]:
        mine = select(memberships).where(memberships.c.task == task, memberships.c.withdrawn_at.is_(None))
        statement = mine.order_by(memberships.c.client)
        return [_membership(row) for row in await self._connection.execute(statement)]

    async def tasks_of(self, client: str) -> list[str]:
        statement = select(memberships.c.task).where(memberships.c.client == client).order_by(memberships.c.task)
        return list((await self._connection.scalars(statement)).all())

    async def remove(self, task: str, client: str | None = None) -> None:
        matching = memberships.c.task == task if client is None else (memberships.c.task == task) & (memberships.c.client == client)
        await self._connection.execute(delete(memberships).where(matching))


def _of(task: str, client: str) -> tuple[Any, Any]:
    return memberships.c.task == task, memberships.c.client == client


def _values(party: Party) -> dict[str, Any]:
    return {"token_hash": party.token_hash, "revoked_at": party.revoked_at, "last_seen_at": party.last_seen_at}


def _party(row: Row[Any]) -> Party:
    return Party(row.name, Role(row.role), row.token_hash, row.enrolled_at, row.revoked_at, row.last_seen_at)


def _membership(row: Row[Any]) -> Membership:
    return Membership(row.task, row.client, row.joined_at, row.label_counts, row.holdout, row.withdrawn_at)
