"""Versions of a context vector, against the fakes: replicas at once, changes that come meanwhile, a replica that dies, rules that cannot."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from ifed.errors import WrongState
from ifed.messages.bodies import read_context
from ifed.messages.enums import RoundState, TaskState
from ifed.tensors.values import TensorBody
from services.aggregator.aggregation.accumulators import ContextAccumulator
from services.aggregator.aggregation.rules import Reducer
from services.aggregator.application.participation import read_update_body
from services.aggregator.application.services import Services
from testing.factories import context_body, join_request, party, policy, spec, update_body
from tests.unit.aggregator.test_closing import CLAIM_SECONDS, World, send_context

TASK = "sentiment"


async def gathered(world: World, *clients: str, **changes: object) -> Services:
    """A task whose context round has closed."""
    service = await world.gathering(*clients, given=spec(clients_expected=len(clients), **changes))
    for client in clients:
        await send_context(service, client)
    await service.closing.run_due()
    assert world.state(1) is RoundState.CLOSED
    return service


def versions(world: World) -> list[tuple[int, int, float]]:
    """Version, changes and value of every context vector."""
    kept = [world.store.rows.contexts[key] for key in sorted(world.store.rows.contexts)]
    return [(head.version, head.changes, float(read_context(TensorBody.from_bytes(body)).values.max())) for head, body in kept]


async def test_of_two_replicas_that_revise_at_once_one_version_is_kept() -> None:
    world = World()
    one = await gathered(world, "a", "b")
    two = world.replica()
    await one.additions.add(TASK, "a", context_body(4.0))
    claimed = await one.revising._claim()
    assert claimed is not None
    assert await two.revising._claim() is None
    await asyncio.gather(one.revising._revise(claimed), two.revising._revise(claimed))
    assert versions(world) == [(1, 0, 1.0), (2, 1, 2.0)]


async def test_changes_that_come_while_a_version_is_made_are_all_in_the_next() -> None:
    world = World()
    service = await gathered(world, "a", "b")
    await service.additions.add(TASK, "a", context_body(4.0))
    claimed = await service.revising._claim()
    assert claimed is not None
    await service.additions.add(TASK, "b", context_body(7.0))
    await service.additions.withdraw(TASK, "a")
    await service.revising._revise(claimed)
    assert versions(world)[1:] == [(2, 1, 2.0)]
    await service.revising.run_due()
    assert versions(world)[2:] == [(3, 3, 4.0)]
    await service.revising.run_due()
    assert len(versions(world)) == 3


async def test_a_version_that_a_dead_replica_began_is_made_by_another() -> None:
    world = World()
    dead = await gathered(world, "a")
    await dead.additions.add(TASK, "a", context_body(3.0))
    assert await dead.revising._claim() is not None
    other = world.replica()
    await other.revising.run_due()
    assert len(versions(world)) == 1
    world.clock.forward(CLAIM_SECONDS)
    await other.revising.run_due()
    assert versions(world)[1:] == [(2, 1, 2.0)]


async def test_a_rule_that_lacks_clients_serves_nothing_and_goes_on_when_they_come() -> None:
    world = World()
    service = await gathered(world, "a", "b", "c", aggregation="trimmed_mean", byzantine_fraction=0.3, serve="latest")
    served = world.store.rows.tasks[TASK].served
    await service.additions.withdraw(TASK, "c")
    await service.revising.run_due()
    task = world.store.rows.tasks[TASK]
    assert (served, task.served, task.state) == (0, None, TaskState.PAUSED)
    assert task.reason is not None
    assert task.reason.startswith("its context vector cannot be made without those who withdrew")
    world.store.rows.parties["d"] = party("d")
    await service.participation.join(TASK, "d", join_request())
    await service.additions.add(TASK, "d", context_body(1.0))
    await service.revising.run_due()
    assert (world.store.rows.tasks[TASK].served, versions(world)[-1][:2]) == (0, (2, 2))


async def test_what_somebody_took_back_is_served_by_no_round_and_no_rollback() -> None:
    world = World()
    service = await gathered(world, "a", serve="latest", rounds=1)
    await service.participation.submit(TASK, 2, "a", update_body(), read_update_body)
    await service.additions.withdraw(TASK, "a")
    await service.revising.run_due()
    await service.closing.run_due()
    assert (world.state(2), world.store.rows.tasks[TASK].served) == (RoundState.CLOSED, None)
    assert (await service.history.rollback(TASK, 0)).served is None
    resumed = await service.administration.resume(TASK)
    assert (resumed.state, len(world.store.rows.rounds)) == (TaskState.PAUSED, 2)
    assert str(resumed.reason).startswith("its context vector cannot be made without those who withdrew")
    world.store.rows.parties["b"] = party("b")
    await service.participation.join(TASK, "b", join_request())
    await service.additions.add(TASK, "b", context_body(3.0))
    await service.revising.run_due()
    assert (world.store.rows.tasks[TASK].served, versions(world)[-1]) == (0, (2, 2, 3.0))
    resumed = await service.administration.resume(TASK)
    assert (resumed.state, resumed.reason, len(world.store.rows.rounds)) == (TaskState.RUNNING, None, 3)


async def test_why_a_task_failed_is_still_told_when_its_context_vector_cannot_be_made() -> None:
    world = World()
    service = await gathered(world, "a", "b")
    for client in ("a", "b"):
        await service.additions.withdraw(TASK, client)
        await service.revising.run_due()
    task = world.store.rows.tasks[TASK]
    assert task.state is TaskState.FAILED
    failed, void = str(task.reason).split("; ")
    assert failed == "round 2 (calibration) failed: every client it waited for was revoked or withdrew"
    assert void.startswith("its context vector cannot be made without those who withdrew: ")


async def test_what_else_a_reason_told_is_told_again_once_the_vector_can_be_made() -> None:
    world = World()
    service = await gathered(world, "a", serve="latest", rounds=1)
    await service.participation.submit(TASK, 2, "a", update_body(), read_update_body)
    await service.closing.run_due()
    await service.history.rollback(TASK, 0)
    await service.additions.withdraw(TASK, "a")
    await service.revising.run_due()
    assert str(world.store.rows.tasks[TASK].reason).startswith("rolled back to version 0; its context vector cannot be made")
    world.store.rows.parties["b"] = party("b")
    await service.participation.join(TASK, "b", join_request())
    await service.additions.add(TASK, "b", context_body(3.0))
    await service.revising.run_due()
    task = world.store.rows.tasks[TASK]
    assert (task.state, task.reason, task.served) == (TaskState.PAUSED, "rolled back to version 0", 0)


async def test_a_failed_task_takes_no_additions() -> None:
    world = World()
    service = await gathered(world, "a")
    world.store.rows.tasks[TASK].fail("a test")
    with pytest.raises(WrongState):
        await service.additions.add(TASK, "a", context_body(2.0))


def test_parts_of_one_client_count_as_one_that_sent_all_at_once() -> None:
    rules = policy(weight_cap=4)
    tally = ContextAccumulator(TASK, 1, rules)
    for client, weight, value in (("a", 2, 1.0), ("a", 6, 5.0), ("b", 1, 0.5)):
        tally.add(client, weight, context_body(value, examples=weight))
    found = read_context(TensorBody.from_bytes(tally.summed().body or b"")).values
    by_hand = Reducer(rules)
    by_hand.add(np.full(found.shape, (2 * 1.0 + 6 * 5.0) / 8), 8)
    by_hand.add(np.full(found.shape, 0.5), 1)
    assert (found == by_hand.value().astype(np.float16)).all()
    assert found.max() == np.float16((4 * 4.0 + 1 * 0.5) / 5)
