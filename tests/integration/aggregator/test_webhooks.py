"""Webhooks over real connections: signed, tried again, over restarts and replicas, and never in a round's way."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update
from standardwebhooks import Webhook, WebhookVerificationError

from ifed.clients import AggregatorClient
from ifed.clients.webhooks import WebhookCaller
from ifed.errors import AlreadyExists, BadUrl, UnknownWebhook
from ifed.messages.enums import TaskState
from ifed.messages.events import DeliveryInfo, DeliveryState, EventKind, NewWebhook
from services.aggregator.settings import Settings
from services.aggregator.storage.tables import webhooks
from testing.factories import spec
from tests.integration.aggregator.deployment import TASK, SimulatedClient, settings
from tests.integration.aggregator.listening import Listening, Receiver, listening, receiver

QUICK = {
    "webhook_private_addresses": True,
    "webhook_retry_seconds": 0.05,
    "webhook_timeout_seconds": 1.0,
    "webhook_attempts": 3,
}
NAME = "pager"


def quick(stack: Settings, **changes: Any) -> Settings:
    return stack.model_copy(update=QUICK | changes)


@pytest.fixture
async def served(stack: Settings) -> AsyncIterator[Listening]:
    async with listening(quick(stack)) as made:
        yield made


@pytest.fixture
async def alone(current_sqlite: str) -> AsyncIterator[Listening]:
    """On SQLite, for what does not depend on the stack."""
    async with listening(quick(settings(current_sqlite))) as made:
        yield made


@pytest.fixture
async def pager() -> AsyncIterator[Receiver]:
    async with receiver() as made:
        yield made


async def registered(admin: AggregatorClient, at: Receiver, name: str = NAME, **wanted: Any) -> str:
    """A webhook to the receiver; its secret."""
    return (await admin.register_webhook(NewWebhook(name=name, url=at.url, **wanted))).secret


async def until(admin: AggregatorClient, *states: DeliveryState, name: str = NAME) -> list[DeliveryInfo]:
    """What became of the events, once they are in these states."""
    async with asyncio.timeout(20):
        while True:
            deliveries = await admin.deliveries(name)
            if [delivery.state for delivery in deliveries] == list(states):
                return deliveries
            await asyncio.sleep(0.02)


async def test_what_is_told_is_signed_as_the_specification_says(served: Listening, pager: Receiver) -> None:
    async with served.admin() as admin:
        secret = await registered(admin, pager)
        await admin.create_task(spec())
        ((headers, body),) = await pager.has(1)
        event = Webhook(secret).verify(body, headers)
        assert (event["type"], event["data"]["task"], event["data"]["number"]) == ("task.created", TASK, 1)
        assert event["timestamp"] == event["data"]["at"]
        assert headers["webhook-id"] == "evt_1"
        for altered in (body.replace(b"created", b"deleted"), body + b" "):
            with pytest.raises(WebhookVerificationError):
                Webhook(secret).verify(altered, headers)
        other = await registered(admin, pager, "other")
        with pytest.raises(WebhookVerificationError):
            Webhook(other).verify(body, headers)
        (delivered,) = await until(admin, DeliveryState.DELIVERED)
        assert (delivered.status, delivered.attempts, delivered.error) == (204, 1, None)
        assert delivered.delivered_at is not None


async def test_a_webhook_is_told_what_it_asked_for_in_the_order_of_the_events(alone: Listening, pager: Receiver) -> None:
    async with alone.admin() as admin:
        await registered(admin, pager, events=[EventKind.ROUND_OPENED, EventKind.TASK_FINISHED], task=TASK)
        await admin.create_task(spec("topics"))
        await admin.create_task(spec(clients_expected=1, rounds=1))
        await admin.start(TASK)
        async with SimulatedClient(alone.app, "a", (await admin.enrol("a")).token, value=1.0, examples=1) as client:
            await client.run()
        got = [json.loads(body) for _, body in await pager.has(4)]
    assert [(event["type"], event["data"].get("round")) for event in got] == [
        ("round.opened", 1),
        ("round.opened", 2),
        ("round.opened", 3),
        ("task.finished", None),
    ]


async def test_a_receiver_that_fails_is_tried_again_with_the_same_id_and_bytes(served: Listening, pager: Receiver) -> None:
    pager.status = 500
    async with served.admin() as admin:
        secret = await registered(admin, pager)
        await admin.create_task(spec())
        await pager.has(1)
        pager.status = 204
        (delivered,) = await until(admin, DeliveryState.DELIVERED)
        assert delivered.attempts == len(pager.got) >= 2
        assert len({(headers["webhook-id"], body) for headers, body in pager.got}) == 1
        for headers, body in pager.got:
            Webhook(secret).verify(body, headers)
        metrics = await admin._http.get("/metrics")
        assert 'ifed_webhook_attempts_total{outcome="delivered"} 1.0' in metrics.text
        assert 'ifed_webhook_attempts_total{outcome="retried"}' in metrics.text
        assert 'ifed_events_total{kind="task.created"} 1.0' in metrics.text


async def test_after_its_attempts_an_event_is_given_up_and_the_next_one_is_tried(alone: Listening, pager: Receiver) -> None:
    pager.status = 503
    async with alone.admin() as admin:
        await registered(admin, pager)
        await admin.create_task(spec())
        (given_up,) = await until(admin, DeliveryState.FAILED)
        assert (given_up.attempts, given_up.status, given_up.error) == (3, 503, "HTTP 503")
        pager.status = 200
        await admin.delete_task(TASK)
        await until(admin, DeliveryState.FAILED, DeliveryState.DELIVERED)


async def test_an_event_that_cannot_be_signed_is_given_up_like_one_that_is_refused(alone: Listening, pager: Receiver) -> None:
    async with alone.admin() as admin:
        await registered(admin, pager)
        async with alone.app.state.services.dependencies.database.unit_of_work() as work:
            await work.connection.execute(update(webhooks).values(secret="whsec_abcde"))
            await work.commit()
        await admin.create_task(spec())
        (given_up,) = await until(admin, DeliveryState.FAILED)
        assert (given_up.attempts, given_up.status, pager.got) == (3, None, [])


async def test_who_says_gone_is_not_tried_again(alone: Listening, pager: Receiver) -> None:
    pager.status = 410
    async with alone.admin() as admin:
        await registered(admin, pager)
        await admin.create_task(spec())
        (given_up,) = await until(admin, DeliveryState.FAILED)
        assert (given_up.attempts, given_up.status) == (1, 410)


async def test_a_redirect_is_not_followed(alone: Listening, pager: Receiver) -> None:
    async with receiver() as other, alone.admin() as admin:
        pager.status, pager.headers = 307, {"Location": other.url}
        await registered(admin, pager)
        await admin.create_task(spec())
        await until(admin, DeliveryState.FAILED)
        assert other.got == []


async def test_a_receiver_that_never_answers_holds_up_no_round_and_no_other_receiver(served: Listening, pager: Receiver) -> None:
    async with receiver(silent=True) as dead, served.admin() as admin:
        await registered(admin, dead, "dead")
        await registered(admin, pager)
        began = time.monotonic()
        await admin.create_task(spec(clients_expected=1, rounds=1))
        await admin.start(TASK)
        async with SimulatedClient(served.app, "a", (await admin.enrol("a")).token, value=1.0, examples=1) as client:
            await client.run()
        assert (await admin.task(TASK)).state is TaskState.FINISHED
        await pager.has(11)
        took = time.monotonic() - began
        assert len(dead.got) <= 1 + took / QUICK["webhook_timeout_seconds"], "what waits behind an unanswered event is not sent"
        async with asyncio.timeout(10):
            while (await admin.deliveries("dead"))[0].error != "no answer within 1 seconds":
                await asyncio.sleep(0.02)


async def test_what_was_on_its_way_when_the_process_stopped_is_delivered_by_the_next(stack: Settings, pager: Receiver) -> None:
    pager.status = 500
    async with listening(quick(stack, webhook_retry_seconds=1.0)) as served, served.admin() as admin:
        secret = await registered(admin, pager)
        await admin.create_task(spec())
        await pager.has(1)
    pager.status = 204
    async with listening(quick(stack)) as two, two.admin() as admin:
        await until(admin, DeliveryState.DELIVERED)
    Webhook(secret).verify(pager.got[-1][1], pager.got[-1][0])


async def test_two_replicas_deliver_each_event_once(current_postgres: str, redis_url: str, redis_prefix: str) -> None:
    configuration = quick(settings(current_postgres, redis_url=redis_url, redis_prefix=redis_prefix))
    async with (
        listening(configuration) as first,
        listening(configuration) as second,
        first.admin() as admin,
        second.admin() as other,
        receiver() as at,
    ):
        await registered(admin, at)
        await asyncio.gather(*((admin, other)[rank % 2].create_task(spec(f"task-{rank}")) for rank in range(12)))
        await until(admin, *[DeliveryState.DELIVERED] * 12)
    assert [headers["webhook-id"] for headers, _ in at.got] == [f"evt_{number}" for number in range(1, 13)]


async def test_a_secret_is_shown_once_and_a_removed_webhook_is_told_nothing(served: Listening, pager: Receiver) -> None:
    async with served.admin() as admin:
        secret = await registered(admin, pager)
        with pytest.raises(AlreadyExists):
            await registered(admin, pager)
        (listed,) = await admin.webhooks()
        assert (listed.name, listed.url, listed.events, listed.task, listed.pending) == (NAME, pager.url, None, None, 0)
        assert secret not in (await admin._http.get("/v1/webhooks")).text
        await admin.remove_webhook(NAME)
        await admin.create_task(spec())
        for call in (admin.remove_webhook, admin.deliveries):
            with pytest.raises(UnknownWebhook):
                await call(NAME)
        assert pager.got == []


BAD = {
    "no scheme": "hooks.example.org",
    "another scheme": "ftp://hooks.example.org/x",
    "a file": "file:///etc/passwd",
    "no host": "https:///x",
    "a password": "https://name:secret@hooks.example.org",
    "a fragment": "https://hooks.example.org/#x",
    "white space": "https://hooks.example.org/a b",
    "a line break": "https://hooks.example.org/\r\nX: y",
    "a port that is none": "https://hooks.example.org:99999",
    "this machine": "http://127.0.0.1:8080/v1/tasks",
    "this machine by name": "http://localhost:8080",
    "this machine in version 6": "http://[::1]/",
    "this machine, mapped": "http://[::ffff:127.0.0.1]/",
    "a private network": "https://10.0.0.7/x",
    "the cloud's metadata": "http://169.254.169.254/latest/meta-data",
    "nowhere": "http://0.0.0.0/",
}


@pytest.mark.parametrize("case", BAD)
async def test_a_bad_address_is_refused_by_name_when_it_is_registered(case: str, bare: Listening) -> None:
    async with bare.admin() as admin:
        with pytest.raises(BadUrl) as raised:
            await admin.register_webhook(NewWebhook(name=NAME, url=BAD[case]))
        assert "secret" not in raised.value.detail
        assert await admin.webhooks() == []


@pytest.fixture
async def bare(current_sqlite: str) -> AsyncIterator[Listening]:
    """With the settings of a deployment, which lets no webhook inside."""
    async with listening(settings(current_sqlite)) as made:
        yield made


class Resolver:
    """Answers with one list of addresses after another, as a name server does that changes its mind between two questions."""

    def __init__(self, *answers: list[str]) -> None:
        self._answers, self.asked = list(answers), 0

    async def __call__(self, host: str) -> list[str]:
        assert host == "hooks.example.org"
        self.asked += 1
        return self._answers.pop(0)


async def test_a_name_that_leads_inside_is_not_called() -> None:
    resolver = Resolver(["127.0.0.1"], ["93.184.216.34", "127.0.0.1"])
    caller = WebhookCaller(timeout=2.0, private=False, resolver=resolver)
    async with receiver() as inside:
        for _ in range(2):
            answer = await caller.post(inside.url.replace("127.0.0.1", "hooks.example.org"), b"{}", {})
            assert (answer.status, inside.got) == (None, [])
            assert "into a private network" in str(answer.error)
    await caller.close()


async def test_a_post_goes_to_the_address_that_was_checked_and_asks_for_no_second_one() -> None:
    resolver = Resolver(["127.0.0.2", "127.0.0.1"])  # nobody listens at the first; a third question would fail
    caller = WebhookCaller(timeout=2.0, private=True, resolver=resolver)
    async with receiver() as pager:
        answer = await caller.post(pager.url.replace("127.0.0.1", "hooks.example.org"), b"{}", {})
        ((headers, _),) = pager.got
    assert (answer.status, resolver.asked) == (204, 1)
    assert headers["host"].partition(":")[0] == "hooks.example.org"
    await caller.close()


async def test_the_tls_handshake_names_the_host_of_the_url_and_not_the_address() -> None:
    hellos: list[bytes] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hellos.append(await reader.read(4096))
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    caller = WebhookCaller(timeout=2.0, private=True, resolver=Resolver(["127.0.0.1"]))
    async with server:
        await caller.post(f"https://hooks.example.org:{server.sockets[0].getsockname()[1]}/", b"{}", {})
    assert b"hooks.example.org" in hellos[0]
    await caller.close()


@pytest.mark.parametrize("asked", ["\xb2", "9" * 5000])
async def test_a_receiver_that_asks_for_an_odd_wait_is_given_up_after_its_attempts(
    asked: str, alone: Listening, pager: Receiver
) -> None:
    pager.status, pager.headers = 503, {"Retry-After": asked}
    async with alone.admin() as admin:
        await registered(admin, pager)
        await admin.create_task(spec())
        async with asyncio.timeout(10):
            while not (deliveries := await admin.deliveries(NAME))[0].attempts:
                await asyncio.sleep(0.02)
        if asked.isascii():
            wait = deliveries[0].next_at - datetime.now(UTC)  # type: ignore[operator]
            assert timedelta(hours=23) < wait < timedelta(hours=25)
        else:
            await until(admin, DeliveryState.FAILED)


async def test_nobody_there_is_an_outcome_and_says_nothing_of_the_address() -> None:
    caller = WebhookCaller(timeout=2.0, private=True)
    answer = await caller.post("http://127.0.0.1:9/token-in-the-path", b"{}", {})
    assert (answer.status, answer.error) == (None, "ConnectError")
    await caller.close()
