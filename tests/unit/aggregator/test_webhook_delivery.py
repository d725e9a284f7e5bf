"""When a delivery is attempted again, and what an attempt makes of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from ifed.clients.webhooks import WebhookResponse
from ifed.messages.events import DeliveryState, EventKind
from services.aggregator.application.webhook_delivery import RetryPolicy, outcome
from services.aggregator.domain.events import Delivery, DomainEvent, Webhook
from testing.factories import NOON

RETRY = RetryPolicy(timeout=10.0, first=5.0, attempts=4)
DELIVERY = Delivery(DomainEvent(EventKind.ROUND_CLOSED, NOON, "sentiment", number=7), next_at=NOON)


@pytest.mark.parametrize(("attempts", "seconds"), [(1, 5), (2, 20), (3, 80), (4, 320), (9, 86_400), (90, 86_400)])
def test_each_wait_is_four_times_the_one_before_and_at_most_a_day(attempts: int, seconds: int) -> None:
    assert RETRY.wait(attempts, None) == timedelta(seconds=seconds)


@pytest.mark.parametrize(("asked", "seconds"), [(2.0, 5), (60.0, 60), (1e9, 86_400)])
def test_a_receiver_may_ask_for_a_longer_wait_and_not_for_a_shorter_one(asked: float, seconds: int) -> None:
    after = outcome(DELIVERY, WebhookResponse(429, "HTTP 429", asked), NOON, RETRY)
    assert (after.state, after.attempts, after.next_at) == (DeliveryState.PENDING, 1, NOON + timedelta(seconds=seconds))


def test_an_accepted_delivery_is_delivered() -> None:
    after = outcome(DELIVERY, WebhookResponse(202), NOON, RETRY)
    assert (after.state, after.delivered_at, after.next_at, after.status) == (DeliveryState.DELIVERED, NOON, None, 202)


@pytest.mark.parametrize(
    ("attempts", "answer"), [(3, WebhookResponse(None, "ConnectError")), (0, WebhookResponse(410, "HTTP 410"))]
)
def test_the_last_attempt_and_a_receiver_that_is_gone_end_a_delivery(attempts: int, answer: WebhookResponse) -> None:
    after = outcome(replace(DELIVERY, attempts=attempts), answer, NOON, RETRY)
    assert (after.state, after.next_at, after.error) == (DeliveryState.FAILED, None, answer.error)


def test_the_repr_of_a_webhook_hides_its_secret() -> None:
    assert "c2VjcmV0" not in repr(Webhook("pager", "https://example.org", "whsec_c2VjcmV0", NOON))
