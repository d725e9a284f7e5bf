"""The circuit breaker: one failure spares the calls of the next seconds."""

from __future__ import annotations

import pytest

from services.aggregator.runtime import breaker
from services.aggregator.runtime.breaker import CircuitBreaker, CircuitOpen


class Service:
    """Answers, or fails while `down`."""

    def __init__(self) -> None:
        self.down, self.calls = False, 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.down:
            raise ConnectionError("refused")
        return "answer"


def circuit(seconds: float, failures: list[str] | None = None) -> CircuitBreaker:
    record = None if failures is None else failures.append
    return CircuitBreaker(seconds=seconds, errors=(OSError,), consequence="a test", on_failure=record)


async def test_after_a_failure_no_calls_are_made_for_a_while() -> None:
    service, failures = Service(), list[str]()
    redis = circuit(60, failures)
    service.down = True
    for _ in range(3):
        with pytest.raises(CircuitOpen):
            await redis.call("read", service)
    assert (service.calls, failures) == (1, ["read"])


async def test_when_the_time_is_over_it_is_called_again() -> None:
    service = Service()
    redis = circuit(0)
    service.down = True
    with pytest.raises(CircuitOpen):
        await redis.call("read", service)
    service.down = False
    assert await redis.call("read", service) == "answer"


async def test_another_kind_of_error_passes_and_opens_nothing() -> None:
    redis = circuit(60)

    async def defect() -> None:
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        await redis.call("read", defect)
    assert await redis.call("read", Service()) == "answer"


async def test_an_outage_is_logged_when_it_begins_and_when_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []

    class Log:
        def info(self, event: str, **_: object) -> None:
            lines.append(event)

        warning = info

    monkeypatch.setattr(breaker, "log", Log())
    service, outage = Service(), circuit(0)
    for service.down in (True, True, False, False):
        try:
            await outage.call("read", service)
        except CircuitOpen:
            continue
    assert lines == ["redis failed", "redis answers again"]
