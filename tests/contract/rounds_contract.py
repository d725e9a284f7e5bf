"""What every store of rounds does, fake or real. A suite sits it by giving a `store` fixture."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from ifed.errors import AlreadyContributed, NothingYet, UnknownRound, WrongState
from ifed.messages.enums import RoundKind, RoundState
from ifed.tensors.confidence import ConfidenceBin, ConfidenceBins
from services.aggregator.domain.evaluation import EvaluationResult, LabelResult
from services.aggregator.storage.database import Database
from testing.factories import NOON, aggregate, context_contribution, membership, party, round_, task


async def with_task(database: Database, *clients: str) -> None:
    async with database.unit_of_work() as work:
        await work.tasks.add(task())
        for client in clients:
            await work.parties.add(party(client))
            await work.memberships.put(membership(client))
        await work.commit()


class RoundsContract:
    """Rounds, seats and contributions."""

    async def test_a_round_comes_back_as_it_was_kept(self, database: Database) -> None:
        await with_task(database, "a", "b")
        kept = round_(kind=RoundKind.CALIBRATION, version=3, attempt=2, context=4)
        async with database.unit_of_work() as work:
            await work.rounds.add(kept, ["a", "b"])
            await work.commit()
        async with database.read_only() as work:
            assert await work.rounds.get("sentiment", 1) == kept
            assert await work.rounds.newest("sentiment") == kept

    async def test_work_left_without_commit_changes_nothing(self, database: Database) -> None:
        await with_task(database, "a")
        async with database.unit_of_work() as work:
            await work.rounds.add(round_(), ["a"])
        async with database.read_only() as work:
            assert await work.rounds.newest("sentiment") is None
            with pytest.raises(UnknownRound):
                await work.rounds.get("sentiment", 1)

    async def test_a_task_has_one_live_round_at_a_time(self, database: Database) -> None:
        await with_task(database, "a")
        async with database.unit_of_work() as work:
            await work.rounds.add(round_(1), ["a"])
            await work.commit()
        with pytest.raises(WrongState):
            async with database.unit_of_work() as work:
                await work.rounds.add(round_(2), ["a"])

    async def test_a_round_that_ended_makes_room_for_the_next(self, database: Database) -> None:
        await with_task(database, "a")
        first = round_(1)
        async with database.unit_of_work() as work:
            await work.rounds.add(first, ["a"])
            first.cancel(NOON)
            await work.rounds.save(first)
            await work.rounds.add(round_(2), ["a"])
            await work.commit()
        async with database.read_only() as work:
            newest = await work.rounds.newest("sentiment")
            assert newest is not None
            assert newest.number == 2
            assert [kept.number for kept in await work.rounds.page("sentiment", 0, 10)] == [1, 2]
            assert [kept.number for kept in await work.rounds.page("sentiment", 1, 10)] == [2]
            assert [kept.number for kept in await work.rounds.page("sentiment", 0, 1)] == [1]

    async def test_a_contribution_fills_its_seat(self, database: Database) -> None:
        await with_task(database, "a", "b")
        sent = context_contribution("a", examples=7)
        async with database.unit_of_work() as work:
            await work.rounds.add(round_(), ["a", "b"])
            await work.rounds.record(round_(), sent)
            await work.commit()
        async with database.read_only() as work:
            filled, empty = (await work.rounds.seats("sentiment", [1]))[1]
            assert filled.entry == sent.entry
            assert (empty.client, empty.entry) == ("b", None)
            assert await work.rounds.seat("sentiment", 1, "a") == filled
            assert await work.rounds.seat("sentiment", 1, "stranger") is None
            assert await work.rounds.missing("sentiment", 1) == ["b"]

    async def test_a_second_contribution_of_a_client_is_refused_by_name(self, database: Database) -> None:
        await with_task(database, "a")
        async with database.unit_of_work() as work:
            await work.rounds.add(round_(), ["a"])
            await work.rounds.record(round_(), context_contribution("a"))
            await work.commit()
        with pytest.raises(AlreadyContributed):
            async with database.unit_of_work() as work:
                await work.rounds.record(round_(), context_contribution("a", 2.0))

    async def test_bodies_come_in_client_order_whatever_order_they_came_in(self, database: Database) -> None:
        clients = [f"c{number:03}" for number in range(70)]  # more than one batch
        await with_task(database, *clients)
        sent = {client: context_contribution(client, index + 1.0, examples=index + 1) for index, client in enumerate(clients)}
        async with database.unit_of_work() as work:
            await work.rounds.add(round_(expected=70), clients)
            for client in reversed(clients):
                await work.rounds.record(round_(), sent[client])
            await work.commit()
        async with database.read_only() as work:
            bodies = [item async for item in work.rounds.bodies("sentiment", 1)]
        assert bodies == [(client, sent[client].entry.weight, sent[client].body) for client in clients]

    async def test_names_sort_by_their_bytes_on_every_database(self, database: Database) -> None:
        names = ["a-z", "a.z", "a1", "a_z", "aa", "b"]
        await with_task(database, *names)
        async with database.unit_of_work() as work:
            await work.rounds.add(round_(expected=6), names)
            for name in names:
                await work.rounds.record(round_(), context_contribution(name, examples=names.index(name) + 1))
            await work.commit()
        async with database.read_only() as work:
            assert [weight async for _, weight, _ in work.rounds.bodies("sentiment", 1)] == [1, 2, 3, 4, 5, 6]
            assert [member.client for member in await work.memberships.of_task("sentiment")] == names

    async def test_only_open_rounds_past_their_deadline_are_due(self, database: Database) -> None:
        await with_task(database, "a")
        async with database.unit_of_work() as work:
            await work.rounds.add(round_(), ["a"])
            await work.commit()
        async with database.read_only() as work:
            assert await work.rounds.due(NOON + timedelta(minutes=59)) == []
            assert await work.rounds.due(NOON + timedelta(hours=1)) == [("sentiment", 1)]
        async with database.unit_of_work() as work:
            kept = await work.rounds.get("sentiment", 1, for_update=True)
            kept.state = RoundState.AGGREGATING
            await work.rounds.save(kept)
            await work.commit()
        async with database.read_only() as work:
            assert await work.rounds.due(NOON + timedelta(hours=2)) == []

    async def test_a_round_is_claimed_once_until_the_claim_runs_out(self, database: Database) -> None:
        await with_task(database, "a")
        async with database.unit_of_work() as work:
            await work.rounds.add(round_(state=RoundState.AGGREGATING), ["a"])
            await work.commit()
        soon, later = NOON + timedelta(seconds=10), NOON + timedelta(seconds=20)
        async with database.unit_of_work() as work:
            claimed = await work.rounds.claim(NOON, soon)
            await work.commit()
        assert claimed is not None
        async with database.unit_of_work() as work:
            assert await work.rounds.claim(NOON + timedelta(seconds=9), later) is None
        async with database.unit_of_work() as work:
            assert await work.rounds.claim(soon, later) == claimed

    async def test_an_open_round_cannot_be_claimed(self, database: Database) -> None:
        await with_task(database, "a")
        async with database.unit_of_work() as work:
            await work.rounds.add(round_(), ["a"])
            assert await work.rounds.claim(NOON, NOON) is None

    async def test_evaluations_are_those_of_closed_rounds_in_their_order(self, database: Database) -> None:
        await with_task(database, "a")
        async with database.unit_of_work() as work:
            for number, accuracy in ((1, None), (2, 0.5), (3, 0.75)):
                measured = None if accuracy is None else EvaluationResult(accuracy, accuracy, 8)
                done = round_(number, RoundKind.CALIBRATION, version=number, state=RoundState.CLOSED, evaluation=measured)
                await work.rounds.add(done, ["a"])
            failed = round_(4, RoundKind.CALIBRATION, state=RoundState.FAILED, evaluation=EvaluationResult(1.0, 1.0, 8))
            await work.rounds.add(failed, ["a"])
            await work.commit()
        async with database.read_only() as work:
            assert await work.rounds.evaluations("sentiment") == [
                (2, EvaluationResult(0.5, 0.5, 8)),
                (3, EvaluationResult(0.75, 0.75, 8)),
            ]
            assert (await work.rounds.evaluation_of("sentiment", 2)).number == 2
            for version in (1, 4):
                with pytest.raises(NothingYet):
                    await work.rounds.evaluation_of("sentiment", version)

    async def test_what_a_withdrawn_version_measured_no_longer_counts(self, database: Database) -> None:
        await with_task(database, "a")
        bins = ConfidenceBins((ConfidenceBin(),) * 9 + (ConfidenceBin(8, 4, 7.6000000001),))
        labels = (LabelResult(4, 4, 2), LabelResult(4, 4, 2))
        measured = EvaluationResult(0.5, 0.5, 8, (-0.5, -1.0), labels=labels, confidence=bins)
        async with database.unit_of_work() as work:
            for number, version in ((1, 0), (2, 1), (3, 2)):
                await work.aggregates.add_coefficients(aggregate(version), b"body")
                done = round_(number, RoundKind.CALIBRATION, version=version, state=RoundState.CLOSED, evaluation=measured)
                await work.rounds.add(done, ["a"])
            await work.aggregates.withdraw_after("sentiment", 0, NOON)
            await work.commit()
        async with database.unit_of_work() as work:
            assert await work.rounds.evaluations("sentiment") == [(0, replace(measured, labels=()))]
            assert await work.rounds.evaluations("sentiment", labels=True) == [(0, measured)]
            assert (await work.rounds.get("sentiment", 1)).evaluation == measured
            await work.aggregates.withdraw_after("sentiment", 1, NOON)
            assert [version for version, _ in await work.rounds.evaluations("sentiment")] == [0, 1]

    async def test_the_ledger_comes_in_pages_by_round_and_client(self, database: Database) -> None:
        await with_task(database, "a", "b")
        first, second = round_(1), round_(2, RoundKind.CALIBRATION)
        sent = {client: context_contribution(client, examples=7) for client in ("a", "b")}
        async with database.unit_of_work() as work:
            await work.rounds.add(first, ["a", "b"])
            for client in ("b", "a"):
                await work.rounds.record(first, sent[client])
            first.cancel(NOON)
            await work.rounds.save(first)
            await work.rounds.add(second, ["a"])
            await work.rounds.record(second, sent["a"])
            await work.commit()
        async with database.read_only() as work:
            everything = await work.rounds.ledger("sentiment", (0, "", 0), 10)
            assert [(line.round, line.entry) for line in everything] == [
                (1, sent["a"].entry),
                (1, sent["b"].entry),
                (2, sent["a"].entry),
            ]
            assert [(line.kind, line.state) for line in everything[1:]] == [
                (RoundKind.CONTEXT, RoundState.CANCELLED),
                (RoundKind.CALIBRATION, RoundState.OPEN),
            ]
            assert await work.rounds.ledger("sentiment", (1, "a", 0), 1) == everything[1:2]
            assert await work.rounds.ledger("elsewhere", (0, "", 0), 10) == []

    async def test_a_client_without_a_seat_is_not_waited_for(self, database: Database) -> None:
        await with_task(database, "a", "b")
        async with database.unit_of_work() as work:
            await work.rounds.add(round_(), ["a", "b"])
            await work.rounds.unseat("sentiment", 1, "b")
            await work.commit()
        async with database.read_only() as work:
            assert await work.rounds.missing("sentiment", 1) == ["a"]
