"""The aggregator as a process of its own: no torch in it, killed and started again it goes on, told to stop it stops."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ifed.clients import AggregatorClient
from ifed.errors import Unavailable
from ifed.messages.enums import AssignmentKind, RoundState, TaskState
from testing.factories import ADMIN_TOKEN, context_body, join_request, spec
from testing.processes import Process, environment
from tests.integration.aggregator.deployment import TASK

PROGRAM = """
import asyncio, sys
from services.aggregator.app import create_app
from services.aggregator.settings import Settings

async def run():
    app = create_app(Settings())
    async with app.router.lifespan_context(app):
        pass

asyncio.run(run())
print([name for name in ("torch", "transformers", "accelerate", "gguf") if name in sys.modules])
"""


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    made = Process(tmp_path)
    made.start()
    yield made
    made.close()


def test_the_aggregator_runs_without_importing_torch(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["[]"]), done.stderr


async def test_nothing_acknowledged_is_lost_when_the_process_is_killed_in_a_round(process: Process) -> None:
    async with AggregatorClient(process.url, ADMIN_TOKEN) as admin:
        await admin.create_task(spec(TASK, rounds=1))
        await admin.start(TASK)
        tokens = [(await admin.enrol(name)).token for name in ("a", "b")]
    async with AggregatorClient(process.url, tokens[0]) as first, AggregatorClient(process.url, tokens[1]) as second:
        for client in (first, second):
            await client.join(TASK, join_request())
        receipt = await first.submit_context(TASK, 1, context_body(1.0, examples=1))
        long_poll = asyncio.create_task(first.assignment(TASK, wait=20))
        await asyncio.sleep(0.2)
        assert process.stop(signal.SIGKILL) == -signal.SIGKILL
        with pytest.raises(Unavailable):
            await long_poll
        await asyncio.to_thread(process.start)
        assert await first.submit_context(TASK, 1, context_body(1.0, examples=1)) == receipt
        await second.submit_context(TASK, 1, context_body(3.0, examples=3))
        assert (await first.assignment(TASK, wait=10)).kind is AssignmentKind.CALIBRATION
        assert (await first.context(TASK)).values.max() == (1 * 1 + 3 * 3) / 4


async def test_a_round_left_half_aggregated_is_closed_after_a_restart(process: Process) -> None:
    async with AggregatorClient(process.url, ADMIN_TOKEN) as admin:
        await admin.create_task(spec(TASK, clients_expected=1, rounds=1))
        await admin.start(TASK)
        token = (await admin.enrol("a")).token
        async with AggregatorClient(process.url, token) as client:
            await client.join(TASK, join_request())
            await client.submit_context(TASK, 1, context_body())
            process.stop(signal.SIGKILL)  # at whatever point of closing it is now
            await asyncio.to_thread(process.start)
            assert (await client.assignment(TASK, wait=10)).kind is AssignmentKind.CALIBRATION
        rounds = await admin.rounds(TASK)
    assert [(round_.number, round_.state) for round_ in rounds] == [(1, RoundState.CLOSED), (2, RoundState.OPEN)]


async def test_a_process_told_to_stop_answers_its_long_polls_and_ends(process: Process) -> None:
    async with AggregatorClient(process.url, ADMIN_TOKEN) as admin:
        await admin.create_task(spec(TASK))
        await admin.start(TASK)
        token = (await admin.enrol("a")).token
    async with AggregatorClient(process.url, token) as client:
        await client.join(TASK, join_request())
        long_poll = asyncio.create_task(client.assignment(TASK, wait=50))
        await asyncio.sleep(0.3)
        began = time.monotonic()
        assert await asyncio.to_thread(process.stop, signal.SIGTERM) in (0, -signal.SIGTERM)
        answered = await long_poll
        assert time.monotonic() - began < 5
    assert (answered.kind, answered.state) == (AssignmentKind.WAIT, TaskState.RUNNING)


def test_the_process_logs_no_token(process: Process) -> None:
    assert httpx.get(f"{process.url}/v1/tasks", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}).status_code == 200
    assert ADMIN_TOKEN not in process.log()
