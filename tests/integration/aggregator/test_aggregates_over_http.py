"""Context, coefficients and adapter: ETags, digests, versions, long polls."""

from __future__ import annotations

import asyncio
import hashlib
import time

import pytest

from ifed.errors import NothingYet, UnknownTask, UnknownVersion
from ifed.messages.enums import Role, RoundState
from ifed.tensors.values import content_digest, digest_of
from testing.factories import FINGERPRINT
from tests.integration.aggregator.deployment import TASK, Deployment, SimulatedClient


async def finished(aggregator: Deployment, **policy: object) -> SimulatedClient:
    await aggregator.started(clients_expected=1, **policy)
    (client,) = await aggregator.clients("a")
    await client.run()
    return client


async def test_there_is_nothing_to_fetch_before_the_first_round_closed(embedded: Deployment) -> None:
    await embedded.started()
    for fetch in (embedded.admin.context, embedded.admin.coefficients, embedded.admin.adapter):
        with pytest.raises(NothingYet):
            await fetch(TASK)
        with pytest.raises(UnknownTask):
            await fetch("nowhere")


async def test_an_adapter_holds_what_a_model_needs_to_serve_the_task(aggregator: Deployment) -> None:
    client = await finished(aggregator)
    reader = await aggregator.client("reader", role=Role.READER)
    fetched = await reader.adapter(TASK)
    assert fetched is not None
    digest, adapter = fetched
    task = await aggregator.admin.task(TASK)
    assert (adapter.meta.task, adapter.meta.version, adapter.meta.labels) == (TASK, task.served, task.spec.labels)
    assert (adapter.meta.template, adapter.meta.layout, adapter.meta.identity.fingerprint) == (
        task.spec.template,
        task.layout,
        FINGERPRINT,
    )
    (evaluation,) = (evaluation for evaluation in task.evaluations if evaluation.version == task.served)
    assert adapter.meta.evaluation == evaluation.model_copy(update={"labels": None}), "an adapter leaves the labels' results out"
    assert adapter.context == await client.context(TASK)
    assert adapter.coefficients == await client.coefficients(TASK, version=task.served)
    assert await reader.adapter(TASK, known=digest) is None


async def test_a_body_in_the_cache_that_is_another_is_replaced_counted_and_never_served(aggregator: Deployment) -> None:
    client = await finished(aggregator)
    honest = await client.context(TASK), await client.coefficients(TASK)
    cache = aggregator.app.state.services.dependencies.cache
    answers = [await client._http.get(f"/v1/tasks/{TASK}/{kind}") for kind in ("context", "coefficients")]
    keys = [f"{kind}:{digest_of(answer.content)}" for kind, answer in zip(("context", "coefficients"), answers, strict=True)]
    for key, other in zip(keys, reversed(answers), strict=True):
        assert await cache.get(key) is not None
        await cache.put(key, other.content)
    fetched = await client.adapter(TASK)
    assert fetched is not None
    assert (fetched[1].context, fetched[1].coefficients) == honest
    assert (await client.context(TASK), await client.coefficients(TASK)) == honest
    assert [await cache.get(key) for key in keys] == [answer.content for answer in answers]
    assert f'ifed_cache_mismatches_total{{task="{TASK}"}} 2.0' in (await aggregator.raw("GET", "/metrics", token=None)).text


async def test_best_serves_the_most_accurate_version_and_latest_the_newest(aggregator: Deployment) -> None:
    await aggregator.started(clients_expected=1, rounds=2)
    (client,) = await aggregator.clients("a")
    await client.contribute(await client.assignment(TASK, wait=5))
    tables = {0: [[3, 1], [1, 3]], 1: [[4, 0], [0, 4]], 2: [[1, 3], [3, 1]]}
    for version, table in tables.items():
        assignment = await client.assignment(TASK, wait=5)
        assert assignment.version == version
        client.confusion[:] = table
        await client.contribute(assignment)
    await aggregator.until_round(4, RoundState.CLOSED)
    task = await aggregator.admin.task(TASK)
    assert (task.version, task.served) == (2, 1)
    fetched, newest = await client.adapter(TASK), await client.adapter(TASK, version=2)
    assert fetched is not None
    assert newest is not None
    assert (fetched[1].meta.version, newest[1].meta.version) == (1, 2)


async def test_any_version_can_be_fetched_and_an_unknown_one_is_named(embedded: Deployment) -> None:
    client = await finished(embedded)
    assert {(await client.coefficients(TASK, version=version)).groups for version in (0, 1, 2)} == {2}
    for fetch in (client.coefficients, client.adapter):
        with pytest.raises(UnknownVersion, match="no version 9"):
            await fetch(TASK, version=9)


@pytest.mark.parametrize("path", ["context", "coefficients", "coefficients?version=0", "adapter", "adapter?version=1"])
async def test_every_tensor_answer_says_its_digest_and_is_not_sent_twice(embedded: Deployment, path: str) -> None:
    await finished(embedded)
    answer = await embedded.raw("GET", f"/v1/tasks/{TASK}/{path}")
    digest = hashlib.sha256(answer.content).hexdigest()
    assert answer.headers["ETag"] == f'"{digest}"'
    assert answer.headers["Content-Digest"] == content_digest(answer.content)
    for known in (f'"{digest}"', f'"other", W/"{digest}"'):
        again = await embedded.raw("GET", f"/v1/tasks/{TASK}/{path}", headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", f'"{digest}"')


async def test_the_assignment_names_the_context_by_its_digest(embedded: Deployment) -> None:
    await embedded.started(clients_expected=1)
    (client,) = await embedded.clients("a")
    await client.contribute(await client.assignment(TASK, wait=5))
    assignment = await client.assignment(TASK, wait=5)
    answer = await embedded.raw("GET", f"/v1/tasks/{TASK}/context")
    assert assignment.context_digest == hashlib.sha256(answer.content).hexdigest()


async def test_a_long_poll_for_an_adapter_wakes_when_one_is_promoted(aggregator: Deployment) -> None:
    await aggregator.started(clients_expected=1, rounds=1)
    (client,) = await aggregator.clients("a")
    waiting = asyncio.create_task(client.adapter(TASK, wait=10))
    await asyncio.sleep(0.05)
    await client.run()
    fetched = await waiting
    assert fetched is not None
    assert fetched[1].meta.version == 0, "the first version that was evaluated is the base model"
    newer = await client.adapter(TASK, known=fetched[0], wait=10)
    assert newer is not None
    assert newer[1].meta.version == 1


async def test_a_long_poll_that_nothing_wakes_ends_when_its_time_is_over(embedded: Deployment) -> None:
    client = await finished(embedded)
    fetched = await client.adapter(TASK)
    assert fetched is not None
    began = time.monotonic()
    assert await client.adapter(TASK, known=fetched[0], wait=0.4) is None
    assert 0.4 <= time.monotonic() - began < 3


async def test_the_same_contributions_give_the_same_bytes_in_any_order(embedded: Deployment) -> None:
    await embedded.started(rounds=1)
    names = ("a", "b", "c")
    fetched = []
    for turn, order in enumerate((names, names[::-1])):
        task = f"turn-{turn}"
        spec = (await embedded.admin.task(TASK)).spec.model_copy(update={"name": task, "identity": None})
        await embedded.admin.create_task(spec.model_copy(update={"policy": spec.policy.model_copy(update={"clients_expected": 3})}))
        await embedded.admin.start(task)
        clients = {
            name: await embedded.client(f"{name}{turn}", value=0.1 * rank, examples=rank) for rank, name in enumerate(names, 1)
        }
        for client in clients.values():
            await client.join_task(task)
        for name in order:
            await clients[name].contribute(await clients[name].assignment(task, wait=5), task)
        await clients["a"].assignment(task, wait=5)
        fetched.append((await clients["a"].context(task)).values.tobytes())
    assert fetched[0] == fetched[1]
