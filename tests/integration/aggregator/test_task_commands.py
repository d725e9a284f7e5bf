"""`ifed task …` against an aggregator on a port: rollback, extend-round, ledger, and the proof that fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from typer.testing import CliRunner

from ifed.cli.main import app
from ifed.clients import AggregatorClient
from ifed.errors import Conflict
from services.aggregator.app import serve
from tests.factories import ADMIN_TOKEN, spec
from tests.integration.aggregator.deployment import TASK, SimulatedClient, settings
from tests.integration.aggregator.test_history_over_http import alter_in
from tests.servers import free_port

Command = Callable[..., Awaitable[str]]


@pytest.fixture
async def command(sqlite_database: str) -> AsyncIterator[Command]:
    """Runs an `ifed task` command on a task of one client that has finished."""
    port = free_port()
    server = serve(settings(sqlite_database, port=port))
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.02)
    url = f"http://127.0.0.1:{port}"
    async with AggregatorClient(url, ADMIN_TOKEN) as admin:
        await admin.create_task(spec(clients_expected=1, rounds=1))
        await admin.start(TASK)
        async with SimulatedClient(server._app, "a", (await admin.enrol("a")).token, value=1.0, examples=1) as one:
            await one.run()

    async def command(*words: str) -> str:
        options = {"IFED_TOKEN": ADMIN_TOKEN, "IFED_AGGREGATOR_URL": url, "COLUMNS": "200"}
        result = await asyncio.to_thread(CliRunner().invoke, app, ["task", *words], env=options)
        if result.exception is not None:
            raise result.exception
        return result.output

    command.server = server  # type: ignore[attr-defined]  # for the test that looks behind it
    yield command
    server.should_exit = True
    await running


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


async def test_a_proof_that_fails_ends_with_a_refusal(command: Command) -> None:
    await alter_in(command.server._app, "a")  # type: ignore[attr-defined]  # set by the fixture
    with pytest.raises(Conflict, match="does not give what is kept in round 1"):
        await command("ledger", TASK, "--verify")


async def test_only_an_open_round_is_extended(command: Command) -> None:
    with pytest.raises(Conflict, match="can no longer be extended"):
        await command("extend-round", TASK, "1", "60")
