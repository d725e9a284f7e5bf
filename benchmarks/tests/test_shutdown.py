"""How a benchmark ends: with what it has started."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from benchmarks.shutdown import exit_on_sigterm


@pytest.fixture
def handler_of_before() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # where the benchmark's own is missing, the test fails and not pytest
    yield
    signal.signal(signal.SIGTERM, before)


def killed(cleaned: list[bool]) -> None:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    finally:
        cleaned.append(True)


@pytest.mark.usefixtures("handler_of_before")
def test_a_terminated_benchmark_stops_its_services() -> None:
    cleaned: list[bool] = []
    exit_on_sigterm()
    with pytest.raises(SystemExit) as ended:
        killed(cleaned)
    assert (ended.value.code, cleaned) == (143, [True])
