"""Late joins, added demonstrations and withdrawals over HTTP, on both stacks: the context vector follows, and its bytes are proven."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from ifed.errors import (
    AlreadyContributed,
    NonFinite,
    NothingYet,
    NotJoined,
    QuotaExceeded,
    RoundClosed,
    UnknownVersion,
    Withdrawn,
    WrongState,
)
from ifed.messages.enums import AssignmentKind, RoundKind, RoundState, TaskState
from testing.factories import context_body, update_body
from tests.integration.aggregator.deployment import TASK, Deployment, SimulatedClient, deployed, settings


async def until_context(aggregator: Deployment, version: int) -> None:
    await aggregator.until(lambda task: task.context is not None and task.context >= version)


async def bytes_of(aggregator: Deployment, version: int | None = None) -> bytes:
    params = {} if version is None else {"version": version}
    return (await aggregator.raw("GET", f"/v1/tasks/{TASK}/context", params=params)).content


async def value(client: SimulatedClient) -> float:
    return float((await client.context(TASK)).values.max())


async def in_calibration(aggregator: Deployment, *names: str, **policy: object) -> list[SimulatedClient]:
    """Clients 1, 2, … whose context round has closed and whose first calibration round is open."""
    await aggregator.started(clients_expected=len(names), **policy)
    clients = await aggregator.clients(*names)
    assignment = await clients[0].assignment(TASK, wait=5)
    for client in clients:
        await client.contribute(assignment)
    await aggregator.until_round(2, RoundState.OPEN)
    return clients


async def test_a_late_joiner_brings_its_part_and_the_others_are_not_asked_again(aggregator: Deployment) -> None:
    first, second = await in_calibration(aggregator, "a", "b", rounds=2)
    assert await value(first) == np.float16((1 * 1 + 2 * 2) / 3)
    late = await aggregator.client("c", value=5.0, examples=3)
    assert (await late.assignment(TASK)).kind is AssignmentKind.JOIN
    await late.join_task()
    asked = await late.assignment(TASK)
    assert (asked.kind, asked.round) == (AssignmentKind.ADDITION, None)
    receipt = await late.contribute(asked)
    assert receipt == await late.contribute(asked)
    assert (receipt.round, (await late.assignment(TASK)).kind) == (1, AssignmentKind.WAIT)
    await until_context(aggregator, 2)
    assert await value(first) == np.float16((1 * 1 + 2 * 2 + 3 * 5) / 6)
    assignment = await first.assignment(TASK)
    assert (assignment.kind, assignment.round, assignment.context_version) == (AssignmentKind.CALIBRATION, 2, 1)
    for client in (first, second):
        await client.contribute(assignment)
    assert (await aggregator.until_round(3, RoundState.OPEN)).expected == ["a", "b", "c"]
    after = await late.assignment(TASK, wait=5)
    assert (after.kind, after.context_version) == (AssignmentKind.CALIBRATION, 2)
    assert [line.kind for line in await aggregator.admin.ledger(TASK) if line.client == "a"].count(RoundKind.CONTEXT) == 1


async def test_the_bytes_are_those_of_a_task_in_which_those_who_remain_were_from_the_start(aggregator: Deployment) -> None:
    client, *_ = await in_calibration(aggregator, "a", "b", "c")
    first = await bytes_of(aggregator)
    await client.add_context(TASK, context_body(0.1, examples=7))
    late = await aggregator.client("aa", value=1 / 3, examples=5)
    await late.join_task()
    await late.add_context(TASK, context_body(1 / 3, examples=5))
    await until_context(aggregator, 2)
    await aggregator.admin.withdraw(TASK, "aa")
    await aggregator.until(lambda task: len(task.members) == 3)
    changes = [context.changes for context in await settled(aggregator, 3)]
    assert changes[-1] == 3
    assert await bytes_of(aggregator) != first
    assert await value(client) == np.float16((1 * 1 + 7 * np.float16(0.1) + 2 * 2 + 3 * 3) / 13)
    await client.withdraw(TASK)
    await settled(aggregator, 4)
    again = await aggregator.admin.withdraw(TASK, "a")
    assert again == await client.withdraw(TASK)
    kept = await aggregator.admin.contexts(TASK)
    proofs = [await aggregator.admin.replay_context(TASK, head.version) for head in kept]
    assert all(proof.proven for proof in proofs)
    assert [proof.stored for proof in proofs] == [head.digest for head in kept]
    assert proofs[-1].contributions == 2
    assert (await aggregator.admin.replay(TASK, 1)).stored == kept[0].digest


async def settled(aggregator: Deployment, changes: int) -> list:  # type: ignore[type-arg]
    """The context vectors once one of them reflects so many changes."""
    async with asyncio.timeout(10):
        while (contexts := await aggregator.admin.contexts(TASK))[-1].changes < changes:
            await asyncio.sleep(0.02)
    return contexts


async def test_what_was_withdrawn_is_deleted_after_its_time_and_earlier_versions_say_so(sqlite_database: str) -> None:
    async with deployed(settings(sqlite_database)) as before:
        await in_calibration(before, "a", "b")
        await before.admin.withdraw(TASK, "a")
        await settled(before, 1)
        assert (await before.admin.replay_context(TASK, 1)).proven
        newest = await bytes_of(before)
    async with deployed(settings(sqlite_database, withdrawn_retention_days=0)) as after:
        async with asyncio.timeout(10):
            while not (first := await after.admin.replay_context(TASK, 1)).deleted:
                await asyncio.sleep(0.02)
        assert (first.proven, first.deleted, (await after.admin.replay(TASK, 1)).deleted) == (False, ["a"], ["a"])
        assert (await after.admin.replay_context(TASK, 2)).proven
        assert await bytes_of(after) == newest
        assert [line.withdrawn for line in await after.admin.ledger(TASK) if line.client == "a"] == [True]


async def test_a_client_that_has_sent_its_additions_is_refused_more(sqlite_database: str) -> None:
    async with deployed(settings(sqlite_database, max_additions=2)) as aggregator:
        first, second = await in_calibration(aggregator, "a", "b")
        for value_ in (3.0, 4.0):
            await first.add_context(TASK, context_body(value_))
        with pytest.raises(QuotaExceeded, match="a has sent 2 additions"):
            await first.add_context(TASK, context_body(5.0))
        await first.add_context(TASK, context_body(3.0))
        await second.add_context(TASK, context_body(5.0))


async def test_who_came_and_went_leaves_no_trace_in_the_bytes(aggregator: Deployment) -> None:
    await in_calibration(aggregator, "a", "b")
    first = await bytes_of(aggregator)
    late = await aggregator.client("c", value=1 / 3, examples=9)
    await late.join_task()
    await late.contribute(await late.assignment(TASK))
    await settled(aggregator, 1)
    assert await bytes_of(aggregator) != first
    await late.withdraw(TASK)
    contexts = await settled(aggregator, 2)
    assert await bytes_of(aggregator) == first
    assert contexts[0].digest == contexts[-1].digest
    assert await bytes_of(aggregator, 1) == first


async def test_a_client_of_a_finished_task_adds_and_the_adapter_follows(aggregator: Deployment) -> None:
    await aggregator.started(rounds=1, clients_expected=1)
    (client,) = await aggregator.clients("a")
    await client.run()
    before = await client.adapter(TASK)
    assert before is not None
    waiting = asyncio.create_task(client.adapter(TASK, known=before[0], wait=10))
    await client.add_context(TASK, context_body(4.0, examples=2))
    served = await waiting
    assert served is not None
    assert (before[1].meta.context_version, served[1].meta.context_version) == (1, 2)
    assert served[1].context.values.max() == (1 * 1 + 2 * 4) / 3
    assert served[1].meta.version == before[1].meta.version
    pinned = await client.adapter(TASK, version=served[1].meta.version)
    assert pinned is not None
    assert (pinned[1].meta.context_version, pinned[1].context) == (1, before[1].context)
    late = await aggregator.client("z", value=2.0, examples=3)
    assert (await late.run()).kind is AssignmentKind.DONE
    await until_context(aggregator, 3)
    assert (await aggregator.admin.task(TASK)).state is TaskState.FINISHED
    assert await value(client) == (1 * 1 + 2 * 4 + 3 * 2) / 6


async def test_a_withdrawn_client_is_asked_no_more_and_the_round_does_not_wait_for_it(aggregator: Deployment) -> None:
    first, second = await in_calibration(aggregator, "a", "b", rounds=1)
    await first.contribute(await first.assignment(TASK))
    assert (await second.assignment(TASK)).kind is AssignmentKind.CALIBRATION
    await second.withdraw(TASK)
    assert (await aggregator.until_round(2, RoundState.CLOSED)).expected == ["a"]
    assert (await second.assignment(TASK)).kind is AssignmentKind.WITHDRAWN
    assert (await aggregator.until_round(3, RoundState.OPEN)).expected == ["a"]
    for refused in (second.join_task(), second.add_context(TASK, context_body()), second.submit_update(TASK, 3, update_body())):
        with pytest.raises(Withdrawn):
            await refused
    await until_context(aggregator, 2)
    assert await value(first) == 1.0
    await first.run()
    entries = await aggregator.admin.ledger(TASK)
    assert [(line.round, line.withdrawn) for line in entries if line.client == "b"] == [(1, True)]


async def test_a_client_that_withdraws_from_the_open_context_round_is_not_in_it(aggregator: Deployment) -> None:
    await aggregator.started(clients_expected=3)
    clients = await aggregator.clients("a", "b", "c")
    assignment = await clients[0].assignment(TASK, wait=5)
    for client in clients[:2]:
        await client.contribute(assignment)
    await clients[1].withdraw(TASK)
    assert (await aggregator.admin.round(TASK, 1)).expected == ["a", "c"]
    await clients[2].contribute(assignment)
    await aggregator.until_round(2, RoundState.OPEN)
    assert await value(clients[0]) == (1 * 1 + 3 * 3) / 4
    assert (await aggregator.admin.replay(TASK, 1)).proven
    assert [head.changes for head in await aggregator.admin.contexts(TASK)] == [1]


async def test_when_nobody_is_left_nothing_is_served_until_somebody_comes(aggregator: Deployment) -> None:
    await aggregator.started(rounds=1, clients_expected=1)
    (client,) = await aggregator.clients("a")
    await client.run()
    served = await client.adapter(TASK)
    assert served is not None
    waiting = asyncio.create_task(client.adapter(TASK, known=served[0], wait=30))
    await asyncio.sleep(0.05)
    await client.withdraw(TASK)
    with pytest.raises(NothingYet):
        await asyncio.wait_for(waiting, 5)  # whoever follows must not serve until its long poll is over
    task = await aggregator.until(lambda task: task.served is None)
    assert task.reason is not None
    assert task.reason.startswith("its context vector cannot be made without those who withdrew")
    late = await aggregator.client("b", value=3.0, examples=2)
    await late.run()
    task = await aggregator.until(lambda task: task.served is not None)
    assert await value(late) == 3.0


@pytest.mark.parametrize("policy", [{"aggregation": "median"}, {"aggregation": "geometric_median"}, {"weight_cap": 2}])
async def test_every_rule_follows_and_is_proven(embedded: Deployment, policy: dict[str, object]) -> None:
    client, *_ = await in_calibration(embedded, "a", "b", "c", **policy)
    await client.add_context(TASK, context_body(9.0, examples=5))
    await embedded.admin.withdraw(TASK, "c")
    await settled(embedded, 2)
    for head in await embedded.admin.contexts(TASK):
        assert (await embedded.admin.replay_context(TASK, head.version)).proven
    mean = np.float16((1 * 1 + 5 * 9) / 6)
    expected = {"median": (mean + 2) / 2, "geometric_median": mean}.get(str(policy.get("aggregation")), (2 * (46 / 6) + 2 * 2) / 4)
    assert await value(client) == pytest.approx(expected, rel=1e-2)


async def test_the_same_addition_sent_by_many_hands_counts_once(aggregator: Deployment) -> None:
    client, _ = await in_calibration(aggregator, "a", "b")
    body = context_body(6.0, examples=3)
    receipts = await asyncio.gather(*(client.add_context(TASK, body) for _ in range(6)))
    assert len({receipt.model_dump_json() for receipt in receipts}) == 1
    await settled(aggregator, 1)
    assert await value(client) == np.float16((1 * 1 + 3 * 6 + 2 * 2) / 6)
    assert await client.add_context(TASK, context_body(1.0, examples=1)) == await client.submit_context(
        TASK, 1, context_body(1.0, examples=1)
    )


async def test_what_is_no_part_of_the_context_vector_is_refused_by_name(embedded: Deployment) -> None:
    await embedded.started(clients_expected=1)
    early = await embedded.client("a")
    with pytest.raises(NotJoined):
        await early.add_context(TASK, context_body())
    await early.join_task()
    with pytest.raises(WrongState, match="before its context round closes"):
        await early.add_context(TASK, context_body())
    await early.contribute(await early.assignment(TASK, wait=5))
    await embedded.until_round(2, RoundState.OPEN)
    with pytest.raises(NonFinite):
        await early.add_context(TASK, context_body(float("nan")))
    stranger = await embedded.client("s")
    with pytest.raises(NotJoined):
        await stranger.withdraw(TASK)
    with pytest.raises(NotJoined):
        await embedded.admin.withdraw(TASK, "s")
    with pytest.raises(UnknownVersion):
        await early.context(TASK, version=2)
    with pytest.raises(UnknownVersion):
        await embedded.admin.replay_context(TASK, 2)
    with pytest.raises(AlreadyContributed):
        await early.submit_context(TASK, 1, context_body(8.0))
    with pytest.raises(RoundClosed):
        await early.submit_update(TASK, 7, update_body())
