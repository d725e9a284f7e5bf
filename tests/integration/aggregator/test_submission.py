"""What the aggregator takes once, takes again, and never takes; on both stacks where storage decides."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import numpy as np
import pytest

from ifed.errors import (
    AlreadyContributed,
    DigestMismatch,
    FingerprintMismatch,
    IFedError,
    LayoutMismatch,
    Malformed,
    NonFinite,
    ProbeMismatch,
    RoundClosed,
    StaleUpdate,
    TooLarge,
    WrongState,
)
from ifed.messages.enums import AssignmentKind, RoundState
from ifed.messages.rounds import TaskChanges
from ifed.tensors.values import TensorBody, content_digest
from testing.factories import ADMIN_TOKEN, FINGERPRINT, OTHER_FINGERPRINT, context_body, join_request, layout, probe, update_body
from tests.integration.aggregator.deployment import TASK, Deployment, SimulatedClient, deployed, settings

META = {"fingerprint": FINGERPRINT, "examples": 10}


async def test_the_same_bytes_again_are_the_same_receipt_even_after_the_round_closed(aggregator: Deployment) -> None:
    await aggregator.started(clients_expected=1)
    (client,) = await aggregator.clients("a")
    body = context_body()
    first = await client.submit_context(TASK, 1, body)
    assert first.digest == hashlib.sha256(body).hexdigest()
    await aggregator.until_round(1, RoundState.CLOSED)
    assert await client.submit_context(TASK, 1, body) == first


async def test_other_bytes_of_the_same_client_are_refused(aggregator: Deployment) -> None:
    await aggregator.started()
    client, _ = await aggregator.clients("a", "b")
    await client.submit_context(TASK, 1, context_body(1.0))
    with pytest.raises(AlreadyContributed):
        await client.submit_context(TASK, 1, context_body(2.0))


async def test_one_contribution_sent_many_times_at_once_counts_once(aggregator: Deployment) -> None:
    await aggregator.started()
    client, _ = await aggregator.clients("a", "b")
    receipts = await asyncio.gather(*(client.submit_context(TASK, 1, context_body()) for _ in range(6)))
    assert len({receipt.received_at for receipt in receipts}) == 1
    gathered = await aggregator.admin.round(TASK, 1)
    assert (gathered.state, gathered.missing) == (RoundState.OPEN, ["b"])


async def test_a_late_update_is_told_what_the_assignment_is_now(aggregator: Deployment) -> None:
    await aggregator.started(deadline_seconds=0.5, quorum=1)
    client, late = await aggregator.clients("a", "b")
    await client.contribute(await client.assignment(TASK, wait=5))
    await aggregator.until_round(2, RoundState.OPEN)
    with pytest.raises(
        RoundClosed, match=r"round 1 .* is closed; the client's assignment is now calibration in round 2 from version 0"
    ):
        await late.submit_context(TASK, 1, context_body())


async def in_calibration(aggregator: Deployment) -> SimulatedClient:
    await aggregator.started(clients_expected=1)
    (client,) = await aggregator.clients("a")
    await client.contribute(await client.assignment(TASK, wait=5))
    await aggregator.until_round(2, RoundState.OPEN)
    return client


async def test_an_update_from_another_version_is_stale(embedded: Deployment) -> None:
    client = await in_calibration(embedded)
    with pytest.raises(StaleUpdate, match=r"version 0, this update from version 7; .* now calibration in round 2"):
        await client.submit_update(TASK, 2, update_body(version=7))


async def test_a_round_that_never_was_is_closed(embedded: Deployment) -> None:
    client = await in_calibration(embedded)
    with pytest.raises(RoundClosed, match="has no round 9; it was never open"):
        await client.submit_update(TASK, 9, update_body())


def context_of(values: Any, **meta: Any) -> bytes:
    return TensorBody({"context": np.asarray(values)}, META | meta).to_bytes()


def with_nan() -> bytes:
    values = np.ones(layout().context_shape, dtype=np.float32)
    values[0, 0, 0] = np.nan
    return context_of(values)


BAD_CONTEXTS: dict[str, tuple[bytes, type[IFedError]]] = {
    "NaN": (with_nan(), NonFinite),
    "Inf": (context_of(np.full(layout().context_shape, np.inf, dtype=np.float16)), NonFinite),
    "another shape": (context_of(np.ones((3, 2, 8), dtype=np.float32)), LayoutMismatch),
    "another dtype": (context_of(np.ones(layout().context_shape, dtype=np.float64)), LayoutMismatch),
    "another tensor": (TensorBody({"vector": np.ones((2, 2, 8), dtype=np.float32)}, META).to_bytes(), LayoutMismatch),
    "another model": (context_body(fingerprint=OTHER_FINGERPRINT), FingerprintMismatch),
    "no examples": (context_body(examples=0), Malformed),
    "no metadata": (TensorBody({"context": np.ones((2, 2, 8), dtype=np.float32)}, {}).to_bytes(), Malformed),
    "no safetensors": (b"not safetensors", Malformed),
    "half a body": (context_body()[:-20], Malformed),
    "nothing": (b"", Malformed),
}


@pytest.mark.parametrize("case", BAD_CONTEXTS)
async def test_nothing_of_a_bad_contribution_is_stored(embedded: Deployment, case: str) -> None:
    body, refusal = BAD_CONTEXTS[case]
    await embedded.started()
    client, _ = await embedded.clients("a", "b")
    with pytest.raises(refusal) as raised:
        await client.submit_context(TASK, 1, body)
    assert type(raised.value) is refusal
    assert (await embedded.admin.round(TASK, 1)).missing == ["a", "b"]
    assert (await client.assignment(TASK)).kind is AssignmentKind.CONTEXT


async def test_confusion_counts_must_fit_the_labels_and_the_held_out_examples(embedded: Deployment) -> None:
    client = await in_calibration(embedded)
    with pytest.raises(LayoutMismatch):
        await client.submit_update(TASK, 2, update_body(confusion=np.ones((3, 3))))
    with pytest.raises(LayoutMismatch):
        await client.submit_update(TASK, 2, update_body(confusion=[[1, -1], [0, 0]]))
    with pytest.raises(Malformed, match="more than the 8 held-out examples"):
        await client.submit_update(TASK, 2, update_body(confusion=[[9, 0], [0, 0]]))


async def test_a_vector_is_no_update_and_an_update_no_vector(embedded: Deployment) -> None:
    client = await in_calibration(embedded)
    with pytest.raises(WrongState, match="this is a calibration round"):
        await client.submit_context(TASK, 2, context_body())


async def test_a_body_changed_on_the_way_is_refused(embedded: Deployment) -> None:
    await embedded.started()
    client, _ = await embedded.clients("a", "b")
    token = client._http.headers["Authorization"].removeprefix("Bearer ")
    answer = await embedded.raw(
        "PUT",
        f"/v1/tasks/{TASK}/rounds/1/context",
        token=token,
        content=context_body(1.0),
        headers={"Content-Digest": content_digest(context_body(2.0))},
    )
    assert (answer.status_code, answer.json()["error"]) == (422, DigestMismatch.__name__)


async def test_a_body_over_the_limit_is_refused_while_it_streams_in(current_sqlite: str) -> None:
    async with deployed(settings(current_sqlite, max_body_bytes=4096)) as aggregator:
        await aggregator.started()
        client, _ = await aggregator.clients("a", "b")
        with pytest.raises(TooLarge):
            await client.submit_context(TASK, 1, bytes(5000))

        async def endless() -> Any:
            for _ in range(10):
                yield bytes(1000)

        token = client._http.headers["Authorization"].removeprefix("Bearer ")
        answer = await aggregator.raw("PUT", f"/v1/tasks/{TASK}/rounds/1/context", token=token, content=endless())
        assert (answer.status_code, answer.json()["error"]) == (413, TooLarge.__name__)


async def test_a_client_with_another_model_cannot_join(embedded: Deployment) -> None:
    await embedded.started()
    client = await embedded.client("a")
    other = await embedded.client("b")
    await client.join_task()
    with pytest.raises(FingerprintMismatch, match=f"{FINGERPRINT}.*{OTHER_FINGERPRINT}"):
        await other.join(TASK, join_request(fingerprint=OTHER_FINGERPRINT))


async def test_a_client_whose_model_works_otherwise_cannot_join(embedded: Deployment) -> None:
    await embedded.started()
    client, other = await embedded.client("a"), await embedded.client("b")
    await client.join_task()
    await other.join(TASK, join_request().model_copy(update={"probe": probe(noise=0.05)}))
    with pytest.raises(ProbeMismatch, match=r"first differs at layer 0, by \d\d%.*15% is allowed"):
        await other.join(TASK, join_request().model_copy(update={"probe": probe(noise=0.5)}))
    with pytest.raises(ProbeMismatch, match="other tokens"):
        await other.join(TASK, join_request().model_copy(update={"probe": probe(tokens="d" * 64)}))
    with pytest.raises(Malformed, match="a probe of 3 layers for a model of 4"):
        await other.join(TASK, join_request().model_copy(update={"probe": probe(3)}))
    with pytest.raises(FingerprintMismatch, match=r"must be the same; on the probe texts .* differs at layer 0"):
        await other.join(TASK, join_request(fingerprint=OTHER_FINGERPRINT).model_copy(update={"probe": probe(noise=0.5)}))


async def test_an_admin_may_set_the_probe_before_anyone_joins(embedded: Deployment) -> None:
    made = await embedded.started()
    await embedded.admin.create_task(made.spec.model_copy(update={"name": "probed", "probe": probe(noise=0.5)}))
    client = await embedded.client("a")
    with pytest.raises(ProbeMismatch):
        await client.join_task("probed")


async def test_a_changed_template_forgets_the_probe_and_keeps_the_model(embedded: Deployment) -> None:
    await embedded.admin.create_task((await embedded.started()).spec.model_copy(update={"name": "draft"}))
    client = await embedded.client("a")
    await client.join_task("draft")
    changed = await embedded.admin.change_task("draft", TaskChanges(template="News: {text}\nTopic:"))
    assert (changed.members, changed.spec.probe) == ([], None)
    assert changed.identity is not None
    await client.join(TASK, join_request().model_copy(update={"probe": probe(tokens="d" * 64)}))


async def test_a_model_that_the_groups_do_not_divide_cannot_join(embedded: Deployment) -> None:
    await embedded.started()
    client = await embedded.client("a")
    with pytest.raises(LayoutMismatch, match="2 groups do not divide the hidden size 9"):
        await client.join(TASK, join_request(hidden_size=9))


async def test_joining_again_takes_the_new_counts(embedded: Deployment) -> None:
    await embedded.started()
    client, _ = await embedded.clients("a", "b")
    before = (await embedded.admin.task(TASK)).members[0]
    again = await client.join(TASK, join_request(examples=30, holdout=2))
    assert (again.joined_at, again.holdout, sum(again.label_counts.values())) == (before.joined_at, 2, 30)
    with pytest.raises(Malformed, match="labels this task does not have: neutral"):
        await client.join(TASK, join_request().model_copy(update={"label_counts": {"neutral": 3}}))


async def test_a_finished_task_takes_a_late_client_and_asks_for_its_part_of_the_context(embedded: Deployment) -> None:
    await embedded.started(clients_expected=1, rounds=1)
    (client,) = await embedded.clients("a")
    await client.run()
    late = await embedded.client("b")
    await late.join_task()
    assert (await late.assignment(TASK)).kind is AssignmentKind.ADDITION
    await client.join_task()
    assert (await client.assignment(TASK)).kind is AssignmentKind.DONE


async def test_no_token_and_no_value_is_in_the_log(embedded: Deployment, caplog: pytest.LogCaptureFixture) -> None:
    await embedded.started(clients_expected=1, rounds=1)
    (client,) = await embedded.clients("a")
    await client.run()
    for secret in (ADMIN_TOKEN, client._http.headers["Authorization"], "Review:"):
        assert secret not in caplog.text
