"""What every store of tasks, parties, memberships and aggregates does, fake or real."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from ifed.errors import AlreadyExists, NothingYet, UnknownClient, UnknownRound, UnknownTask, UnknownVersion
from ifed.messages.enums import Role, TaskState
from services.aggregator.domain.access import AuditEntry, EnrolmentCode
from services.aggregator.domain.task import Membership
from services.aggregator.storage.database import Database
from testing.factories import LABELS, NOON, aggregate, context_contribution, identity, membership, party, round_, task


def padded(numbers: list[float]) -> list[float]:
    return numbers + [0.0] * 62


class RecordsContract:
    """Everything but rounds."""

    async def test_a_task_comes_back_as_it_was_kept(self, database: Database) -> None:
        kept = task(identity=identity(), patience=2)
        async with database.unit_of_work() as work:
            await work.tasks.add(kept)
            kept.state, kept.version, kept.served, kept.reason, kept.calibrated = TaskState.PAUSED, 3, 2, "because", 1
            kept.warm_start, kept.context_changes, kept.context_settled = "another", 4, 3
            await work.tasks.save(kept)
            await work.commit()
        async with database.read_only() as work:
            assert await work.tasks.get("sentiment") == kept

    async def test_a_task_name_is_taken_once(self, database: Database) -> None:
        async with database.unit_of_work() as work:
            await work.tasks.add(task())
            await work.commit()
        with pytest.raises(AlreadyExists):
            async with database.unit_of_work() as work:
                await work.tasks.add(task())

    async def test_an_enrolment_code_is_taken_once_and_before_it_expires(self, database: Database) -> None:
        later = NOON + timedelta(hours=1)
        async with database.unit_of_work() as work:
            for digit in ("1", "2"):
                await work.enrolments.add(EnrolmentCode(digit * 64, "a", Role.CLIENT, NOON, later))
            await work.commit()
        async with database.unit_of_work() as work:
            taken = await work.enrolments.take("1" * 64, NOON)
            await work.commit()
        assert taken == EnrolmentCode("1" * 64, "a", Role.CLIENT, NOON, later, used_at=NOON)
        async with database.unit_of_work() as work:
            assert [await work.enrolments.take(digit * 64, at) for digit, at in (("1", NOON), ("2", later), ("3", NOON))] == [
                None
            ] * 3

    async def test_the_audit_comes_in_pages_in_the_order_of_its_lines(self, database: Database) -> None:
        for action in ("POST /a", "POST /b", "POST /c"):
            async with database.unit_of_work() as work:
                await work.audit.add(AuditEntry(NOON, "admin", action, "/", "id"))
                await work.commit()
        async with database.read_only() as work:
            first = await work.audit.page(0, 2)
            assert first[-1].number is not None
            rest = await work.audit.page(first[-1].number, 2)
        assert [entry.action for entry in (*first, *rest)] == ["POST /a", "POST /b", "POST /c"]

    async def test_an_unknown_task_is_refused_by_name(self, database: Database) -> None:
        async with database.read_only() as work:
            with pytest.raises(UnknownTask, match="nowhere"):
                await work.tasks.get("nowhere")

    async def test_tasks_come_in_pages_by_name(self, database: Database) -> None:
        async with database.unit_of_work() as work:
            for name in ("c", "a", "b"):
                await work.tasks.add(task(name))
            await work.commit()
        async with database.read_only() as work:
            assert [kept.name for kept in await work.tasks.page(None, 2)] == ["a", "b"]
            assert [kept.name for kept in await work.tasks.page("b", 2)] == ["c"]

    async def test_a_deleted_task_takes_everything_of_it_along(self, database: Database) -> None:
        async with database.unit_of_work() as work:
            await work.tasks.add(task())
            await work.parties.add(party("a"))
            await work.memberships.put(membership("a"))
            await work.rounds.add(round_(), ["a"])
            await work.rounds.record(round_(), context_contribution("a"))
            await work.aggregates.add_context(aggregate(1), b"body")
            await work.tasks.delete("sentiment")
            await work.tasks.add(task())
            await work.commit()
        async with database.read_only() as work:
            assert await work.memberships.of_task("sentiment") == []
            assert (await work.parties.get("a")).name == "a"
            with pytest.raises(UnknownRound):
                await work.rounds.get("sentiment", 1)
            with pytest.raises(NothingYet):
                await work.aggregates.context("sentiment")

    async def test_a_party_is_found_by_the_hash_of_its_token(self, database: Database) -> None:
        kept = party("a", Role.READER)
        async with database.unit_of_work() as work:
            await work.parties.add(kept)
            await work.commit()
        async with database.read_only() as work:
            assert await work.parties.by_token(kept.token_hash) == kept
            assert await work.parties.by_token("0" * 64) is None
            with pytest.raises(UnknownClient):
                await work.parties.get("b")

    async def test_a_party_keeps_what_changed(self, database: Database) -> None:
        kept = party("a")
        async with database.unit_of_work() as work:
            await work.parties.add(kept)
            kept.token_hash, kept.revoked_at = "f" * 64, NOON
            await work.parties.save(kept)
            await work.parties.saw({"a": NOON + timedelta(minutes=1)})
            await work.commit()
        async with database.read_only() as work:
            stored = await work.parties.get("a")
            assert (stored.token_hash, stored.revoked_at, stored.last_seen_at) == ("f" * 64, NOON, NOON + timedelta(minutes=1))

    async def test_a_party_name_is_taken_once(self, database: Database) -> None:
        async with database.unit_of_work() as work:
            await work.parties.add(party("a"))
            await work.commit()
        with pytest.raises(AlreadyExists):
            async with database.unit_of_work() as work:
                await work.parties.add(replace(party("a"), token_hash="e" * 64))

    async def test_joining_again_keeps_the_first_time_and_takes_the_new_counts(self, database: Database) -> None:
        async with database.unit_of_work() as work:
            await work.tasks.add(task())
            await work.parties.add(party("a"))
            await work.memberships.put(membership("a"))
            await work.memberships.put(Membership("sentiment", "a", NOON + timedelta(days=1), {LABELS[0]: 1}, 3))
            await work.commit()
        async with database.read_only() as work:
            assert await work.memberships.find("sentiment", "a") == Membership("sentiment", "a", NOON, {LABELS[0]: 1}, 3)
            assert await work.memberships.find("sentiment", "b") is None
            assert await work.memberships.tasks_of("a") == ["sentiment"]

    async def test_memberships_are_forgotten_one_or_all(self, database: Database) -> None:
        async with database.unit_of_work() as work:
            await work.tasks.add(task())
            for name in ("a", "b", "c"):
                await work.parties.add(party(name))
                await work.memberships.put(membership(name))
            await work.memberships.remove("sentiment", "b")
            assert [member.client for member in await work.memberships.of_task("sentiment")] == ["a", "c"]
            await work.memberships.remove("sentiment")
            assert await work.memberships.of_task("sentiment") == []

    async def test_finished_tasks_of_the_same_key_are_found_the_most_similar_first(self, database: Database) -> None:
        kept = {"like": [0.6, 0.8], "unlike": [-1.0, 0.0], "same": [1.0, 0.0], "running": [1.0, 0.0], "other-key": [1.0, 0.0]}
        async with database.unit_of_work() as work:
            for name, numbers in kept.items():
                made = task(name)
                await work.tasks.add(made)
                made.state, made.served = (TaskState.RUNNING if name == "running" else TaskState.FINISHED), 0
                await work.tasks.save(made)
                await work.sketches.put(name, "other" if name == "other-key" else "key", padded(numbers))
            await work.tasks.add(task("new"))
            await work.sketches.put("new", "key", padded([0.0, 1.0]))
            await work.sketches.put("new", "key", padded([1.0, 0.0]))
            await work.commit()
        async with database.read_only() as work:
            assert await work.sketches.find("new") == ("key", padded([1.0, 0.0]))
            assert await work.sketches.find("nowhere") is None
            nearest = await work.sketches.nearest("new", "key", padded([1.0, 0.0]), 5)
            assert [name for name, _ in nearest] == ["same", "like", "unlike"]
            assert [similarity for _, similarity in nearest] == pytest.approx([1.0, 0.6, -1.0], abs=1e-6)
            assert len(await work.sketches.nearest("new", "key", padded([1.0, 0.0]), 2)) == 2

    async def test_a_version_keeps_the_rounds_behind_it_and_the_optimisers_memory(self, database: Database) -> None:
        async with database.unit_of_work() as work:
            await work.tasks.add(task())
            assert await work.aggregates.newest_version("sentiment") is None
            await work.aggregates.add_coefficients(aggregate(0), b"zero")
            await work.aggregates.add_coefficients(replace(aggregate(4), calibrated=2), b"four", b"moments")
            await work.commit()
        async with database.read_only() as work:
            assert await work.aggregates.newest_version("sentiment") == 4
            assert (await work.aggregates.coefficients("sentiment", 4)).calibrated == 2
            assert [await work.aggregates.moments("sentiment", version) for version in (0, 4)] == [None, b"moments"]

    async def test_aggregates_come_back_byte_for_byte(self, database: Database) -> None:
        async with database.unit_of_work() as work:
            await work.tasks.add(task())
            await work.aggregates.add_context(aggregate(1), b"old")
            await work.aggregates.add_context(aggregate(2), b"new")
            await work.aggregates.add_coefficients(aggregate(0), b"\x00\xff")
            await work.commit()
        async with database.read_only() as work:
            assert await work.aggregates.context("sentiment") == aggregate(2)
            assert await work.aggregates.context_body("sentiment", 2) == b"new"
            assert await work.aggregates.coefficients("sentiment", 0) == aggregate(0)
            assert await work.aggregates.coefficients_body("sentiment", 0) == b"\x00\xff"
            with pytest.raises(UnknownVersion, match="version 7"):
                await work.aggregates.coefficients("sentiment", 7)
