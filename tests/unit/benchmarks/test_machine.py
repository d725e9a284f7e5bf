"""How a benchmark ends: with what it has started."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from benchmarks.machine import end_whole


@pytest.fixture
def handler_of_before() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def killed(cleaned: list[bool]) -> None:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.sigtimedwait([], 5)
    finally:
        cleaned.append(True)


@pytest.mark.usefixtures("handler_of_before")
def test_a_benchmark_that_is_told_to_end_cleans_up() -> None:
    cleaned: list[bool] = []
    end_whole()
    with pytest.raises(SystemExit) as ended:
        killed(cleaned)
    assert (ended.value.code, cleaned) == (143, [True])
