"""What every store keeps of a context vector that grows and shrinks, fake or real. A suite sits it by giving a `store` fixture."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from ifed.errors import NothingYet, UnknownVersion
from ifed.messages.enums import RoundKind, RoundState
from services.aggregator.domain.aggregates import ContextPart
from services.aggregator.domain.contribution import Contribution
from services.aggregator.storage.database import Database
from testing.factories import NOON, aggregate, context_contribution, membership, round_, task, update_contribution
from tests.contract.rounds_contract import with_task


async def with_closed_context(database: Database, *clients: str) -> dict[str, Contribution]:
    """A task whose context round, number 1, has closed."""
    await with_task(database, *clients)
    sent = {client: context_contribution(client, index + 1.0) for index, client in enumerate(clients)}
    async with database.unit_of_work() as work:
        await work.rounds.add(round_(expected=len(clients)), list(clients))
        for client in clients:
            await work.rounds.record(round_(), sent[client])
        await work.rounds.save(round_(expected=len(clients), state=RoundState.CLOSED))
        await work.commit()
    return sent


async def counted(database: Database, changes: int) -> list[ContextPart]:
    async with database.read_only() as work:
        return [part async for part in work.parts.bodies("sentiment", 1, changes)]


def part(sent: Contribution) -> ContextPart:
    return ContextPart(sent.entry.client, sent.entry.digest, sent.entry.weight, sent.body)


class PartsContract:
    """Parts of context vectors."""

    async def test_later_parts_count_from_their_change_on_beside_those_of_the_round(self, database: Database) -> None:
        sent = await with_closed_context(database, "a", "c")
        more = [context_contribution("c", 7.0), context_contribution("b", 8.0), context_contribution("a", 9.0)]
        async with database.unit_of_work() as work:
            for change, contribution in enumerate(more, start=1):
                await work.parts.add("sentiment", 1, change, contribution)
            await work.commit()
        assert await counted(database, 0) == [part(sent["a"]), part(sent["c"])]
        assert await counted(database, 1) == [part(sent["a"]), part(sent["c"]), part(more[0])]
        everything = [part(contribution) for contribution in (sent["a"], more[2], more[1], sent["c"], more[0])]
        assert await counted(database, 3) == await counted(database, 9) == everything

    async def test_withdrawn_parts_count_before_their_withdrawal_and_not_after(self, database: Database) -> None:
        sent = await with_closed_context(database, "a", "b")
        added = context_contribution("a", 5.0)
        async with database.unit_of_work() as work:
            await work.parts.add("sentiment", 1, 1, added)
            assert await work.parts.withdraw("sentiment", "a", 2) == 2
            assert await work.parts.withdraw("sentiment", "a", 3) == 0
            await work.commit()
        assert await counted(database, 1) == [part(sent["a"]), part(added), part(sent["b"])]
        assert await counted(database, 2) == [part(sent["b"])]
        async with database.read_only() as work:
            assert not await work.parts.holds("sentiment", "a")
            assert await work.parts.holds("sentiment", "b")
            assert await work.parts.find("sentiment", "a", added.entry.digest) is None
            lines = await work.rounds.ledger("sentiment", (0, "", 0), 10)
            assert [(line.entry.client, line.change, line.removed) for line in lines] == [("a", 0, 2), ("a", 1, 2), ("b", 0, None)]
            assert await work.rounds.ledger("sentiment", (1, "a", 0), 1) == lines[1:2]

    async def test_what_was_withdrawn_is_deleted_once_it_is_old_and_no_newer_vector_needs_it(self, database: Database) -> None:
        await with_closed_context(database, "a", "b")
        added = context_contribution("a", 5.0)
        async with database.unit_of_work() as work:
            await work.parts.add("sentiment", 1, 1, added)
            assert [await work.parts.additions("sentiment", 1, client) for client in ("a", "b")] == [1, 0]
            await work.parts.withdraw("sentiment", "a", 2)
            await work.memberships.put(replace(membership("a"), withdrawn_at=NOON))
            assert await work.parts.delete_withdrawn(NOON + timedelta(days=1)) == 0, "the revision is still to come"
            kept = await work.tasks.get("sentiment")
            kept.context_changes = kept.context_settled = 2
            await work.tasks.save(kept)
            assert await work.parts.delete_withdrawn(NOON - timedelta(seconds=1)) == 0
            assert await work.parts.deleted("sentiment", 1, 1) == []
            assert await work.parts.delete_withdrawn(NOON) == 2
            assert await work.parts.delete_withdrawn(NOON) == 0
            assert [await work.parts.deleted("sentiment", 1, changes) for changes in (0, 1, 2)] == [["a"], ["a"], []]
            lines = await work.rounds.ledger("sentiment", (0, "", 0), 10)
            await work.commit()
        assert [(line.entry.client, line.entry.digest) for line in lines][1] == ("a", added.entry.digest)
        assert [(part_.client, bool(part_.body)) for part_ in await counted(database, 2)] == [("b", True)]

    async def test_a_part_is_found_by_its_digest_whenever_it_came(self, database: Database) -> None:
        sent = await with_closed_context(database, "a")
        added = context_contribution("a", 5.0)
        async with database.unit_of_work() as work:
            await work.parts.add("sentiment", 1, 1, added)
            await work.commit()
        async with database.read_only() as work:
            for contribution in (sent["a"], added):
                assert await work.parts.find("sentiment", "a", contribution.entry.digest) == contribution.entry
            assert await work.parts.find("sentiment", "b", added.entry.digest) is None
            assert await work.rounds.missing("sentiment", 1) == []
            assert [seat.entry for seat in (await work.rounds.seats("sentiment", [1]))[1]] == [sent["a"].entry]

    async def test_contributions_to_other_rounds_are_no_part_and_are_not_withdrawn(self, database: Database) -> None:
        await with_closed_context(database, "a")
        async with database.unit_of_work() as work:
            calibration = round_(2, RoundKind.CALIBRATION, expected=2)
            await work.rounds.add(calibration, ["a", "b"])
            for client in ("a", "b"):
                await work.rounds.record(calibration, update_contribution(client))
            assert not await work.parts.holds("sentiment", "b")
            assert await work.parts.withdraw("sentiment", "b", 1) == 0
            await work.commit()

    async def test_many_parts_come_in_client_order(self, database: Database) -> None:
        clients = [f"c{number:03}" for number in range(70)]  # more than one batch
        sent = await with_closed_context(database, *clients)
        more = {client: context_contribution(client, 1000.0 + index) for index, client in enumerate(clients)}
        async with database.unit_of_work() as work:
            for change, client in enumerate(reversed(clients), start=1):
                await work.parts.add("sentiment", 1, change, more[client])
            await work.commit()
        assert await counted(database, 70) == [
            part(contribution) for client in clients for contribution in (sent[client], more[client])
        ]

    async def test_a_context_vector_behind_its_changes_is_claimed_once_until_the_claim_runs_out(self, database: Database) -> None:
        kept = task()
        async with database.unit_of_work() as work:
            await work.tasks.add(kept)
            kept.context_changes = 1
            await work.tasks.save(kept)
            assert await work.tasks.claim_context(NOON, NOON) is None  # its context round has not closed
            kept.version = 0
            await work.tasks.save(kept)
            await work.commit()
        soon = NOON + timedelta(seconds=10)
        async with database.unit_of_work() as work:
            assert await work.tasks.claim_context(NOON, soon) == kept
            assert await work.tasks.claim_context(NOON, soon) is None
            assert await work.tasks.claim_context(soon, soon) == kept
            await work.tasks.release_context("sentiment")
            assert await work.tasks.claim_context(NOON, soon) == kept
            kept.context_settled = 1
            await work.tasks.save(kept)
            await work.tasks.release_context("sentiment")
            assert await work.tasks.claim_context(soon, soon) is None

    async def test_context_vectors_are_kept_by_version(self, database: Database) -> None:
        heads = [replace(aggregate(version), changes=3 * (version - 1)) for version in (1, 2, 3)]
        async with database.unit_of_work() as work:
            await work.tasks.add(task())
            with pytest.raises(NothingYet):
                await work.aggregates.context("sentiment")
            for head in heads:
                await work.aggregates.add_context(head, b"body")
            await work.aggregates.add_coefficients(replace(aggregate(0), context=2), b"zero")
            await work.commit()
        async with database.read_only() as work:
            assert await work.aggregates.context("sentiment") == heads[2]
            assert await work.aggregates.context("sentiment", 2) == heads[1]
            assert await work.aggregates.contexts("sentiment", 1, 1) == heads[1:2]
            assert (await work.aggregates.coefficients("sentiment", 0)).context == 2
            with pytest.raises(UnknownVersion):
                await work.aggregates.context("sentiment", 4)

    async def test_a_member_that_withdrew_is_found_and_not_counted(self, database: Database) -> None:
        await with_task(database, "a", "b")
        gone = replace(membership("a"), withdrawn_at=NOON)
        async with database.unit_of_work() as work:
            await work.memberships.put(gone)
            await work.commit()
        async with database.read_only() as work:
            assert await work.memberships.find("sentiment", "a") == gone
            assert [member.client for member in await work.memberships.of_task("sentiment")] == ["b"]
            assert await work.memberships.withdrawn("sentiment") == [gone]
