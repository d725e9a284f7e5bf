"""`ifed task …` against an aggregator on a port: rollback, extend-round, ledger, and the proof that fails."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from ifed.clients import AggregatorClient
from ifed.errors import AlreadyExists, Conflict
from tests.factories import ADMIN_TOKEN, spec
from tests.integration.aggregator.conftest import CommandLine
from tests.integration.aggregator.deployment import TASK, SimulatedClient
from tests.integration.aggregator.test_history_over_http import alter_in

Command = Callable[..., Awaitable[str]]


@pytest.fixture
async def command(ifed: CommandLine) -> Command:
    """Runs an `ifed task` command on a task of one client that has finished."""
    async with AggregatorClient(ifed.url, ADMIN_TOKEN) as admin:
        await admin.create_task(spec(clients_expected=1, rounds=1))
        await admin.start(TASK)
        async with SimulatedClient(ifed.server._app, "a", (await admin.enrol("a")).token, value=1.0, examples=1) as one:
            await one.run()
    return partial(ifed, "task")


async def test_the_way_back_is_one_command(command: Command) -> None:
    said = await command("rollback", TASK, "0")
    assert "rolled back to version 0" in said
    assert "serves version 0" in said


async def test_the_ledger_is_listed_and_proven(command: Command) -> None:
    listed = await command("ledger", TASK)
    assert [line.split()[1] for line in listed.splitlines() if line.strip()[:1].isdigit()] == [
        "context",
        "calibration",
        "evaluation",
    ]
    proven = await command("ledger", TASK, "--verify")
    assert proven.count("yes") == 3


async def test_a_proof_that_fails_ends_with_a_refusal(command: Command, ifed: CommandLine) -> None:
    await alter_in(ifed.server._app, "a")
    with pytest.raises(Conflict, match="does not give what is kept in round 1"):
        await command("ledger", TASK, "--verify")


async def test_only_an_open_round_is_extended(command: Command) -> None:
    with pytest.raises(Conflict, match="can no longer be extended"):
        await command("extend-round", TASK, "1", "60")


async def test_a_job_that_makes_a_task_may_run_again(ifed: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "task.json"
    file.write_text(spec("kept").model_dump_json())
    assert "kept is draft" in await ifed("task", "create", str(file))
    with pytest.raises(AlreadyExists):
        await ifed("task", "create", str(file))
    assert "kept is running" in await ifed("task", "create", str(file), "--start", "--keep")
    assert "kept is running" in await ifed("task", "create", str(file), "--start", "--keep")
