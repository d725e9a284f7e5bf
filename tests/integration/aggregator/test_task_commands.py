"""`ifed task …` against an aggregator on a port: a stuck round, rollback, ledger, withdrawal, and the proof that fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import httpx
import pytest
from pydantic import BaseModel

from ifed.clients import AggregatorClient
from ifed.errors import AlreadyExists, Conflict, NothingYet
from ifed.messages.clients import AuditLine, ClientInfo
from ifed.messages.enums import AssignmentKind, RoundState
from ifed.messages.evaluations import EvaluationDetails
from ifed.messages.events import WebhookInfo
from ifed.messages.rounds import ContextInfo, LedgerEntry, Replay, RoundInfo, TaskInfo
from testing.factories import ADMIN_TOKEN, spec
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
        async with SimulatedClient(ifed.server._app, "a", (await admin.enrol("a")).token, value=1.0, examples=1) as client:
            await client.run()
    return partial(ifed, "task")


def json_lines(output: str) -> list[str]:
    """Return the lines of JSON, without the log of the server, which runs in this process."""
    return [line for line in output.splitlines() if line.startswith("{")]


async def test_the_way_back_is_one_command(command: Command) -> None:
    output = await command("rollback", TASK, "0")
    assert "rolled back to version 0" in output
    assert "serves version 0" in output


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
    with pytest.raises(Conflict, match="does not reproduce what is stored for round 1"):
        await command("ledger", TASK, "--verify")


async def test_json_has_every_field_of_what_the_tables_show(command: Command, ifed: CommandLine) -> None:
    (shown,) = map(json.loads, json_lines(await command("show", TASK, "--json")))
    assert TaskInfo.model_validate(shown["task"]).spec.name == TASK
    assert [RoundInfo.model_validate(round_).number for round_ in shown["rounds"]] == [1, 2, 3]
    kinds: list[tuple[type[BaseModel], int, tuple[str, ...]]] = [
        (TaskInfo, 1, ("task", "list")),
        (LedgerEntry, 3, ("task", "ledger", TASK)),
        (Replay, 3, ("task", "ledger", TASK, "--verify")),
        (ContextInfo, 1, ("task", "contexts", TASK)),
        (ClientInfo, 1, ("client", "list")),
        (WebhookInfo, 0, ("webhook", "list")),
    ]
    for kind, count, words in kinds:
        lines = json_lines(await ifed(*words, "--json"))
        assert len([kind.model_validate_json(line) for line in lines]) == count


async def test_details_are_precision_and_recall_confusions_and_each_clients_accuracy(command: Command, ifed: CommandLine) -> None:
    (report,) = map(json.loads, json_lines(await command("show", TASK, "--details", "--json")))
    details = [EvaluationDetails.model_validate(evaluation) for evaluation in report["evaluations"]]
    assert [(detail.version, detail.round, detail.accuracy, detail.confusion) for detail in details] == [
        (0, 2, 0.75, [[3, 1], [1, 3]]),
        (1, 3, 0.75, [[3, 1], [1, 3]]),
    ]
    assert [(label.label, label.precision, label.recall) for label in details[0].labels] == [
        ("negative", 0.75, 0.75),
        ("positive", 0.75, 0.75),
    ]
    assert [(client.client, client.correct, client.texts) for client in details[0].clients] == [("a", 6, 8)]
    assert "version 1, evaluated in round 3 on 8 held-out texts" in await command("show", TASK, "--details")
    async with AggregatorClient(ifed.url, ADMIN_TOKEN) as admin:
        with pytest.raises(NothingYet, match="no closed round of task 'sentiment' has evaluated version 7"):
            await admin.evaluation(TASK, 7)


async def test_a_threshold_is_set_and_taken_away(command: Command) -> None:
    assert "gives no label to a text whose highest probability is below 0.8" in await command("abstain", TASK, "0.8")
    assert "gives no label" not in await command("abstain", TASK, "0")


async def test_the_audit_lists_what_admins_requested_from_a_line_on(command: Command, ifed: CommandLine) -> None:
    lines = [AuditLine.model_validate_json(line) for line in json_lines(await ifed("audit", "--json"))]
    assert [line.action for line in lines] == ["POST /v1/tasks", "POST /v1/tasks/{task}/start", "POST /v1/clients"]
    rest = await ifed("audit", "--after", str(lines[1].number))
    assert "POST /v1/clients" in rest
    assert "start" not in rest


async def test_only_an_open_round_is_extended(command: Command) -> None:
    with pytest.raises(Conflict, match="can no longer be extended"):
        await command("extend-round", TASK, "1", "60")


async def test_a_withdrawal_and_what_it_made_of_the_context_are_told(command: Command, ifed: CommandLine) -> None:
    app_ = ifed.server._app
    async with AggregatorClient("http://aggregator", ADMIN_TOKEN, transport=httpx.ASGITransport(app_)) as admin:
        token = (await admin.enrol("b")).token
        async with SimulatedClient(app_, "b", token, value=3.0, examples=1) as late:
            await late.run()
        while (await admin.task(TASK)).context != 2:
            await asyncio.sleep(0.02)
        assert "b withdrew from sentiment at" in await command("withdraw", TASK, "--client", "b", "--yes")
        while (await admin.task(TASK)).context != 3:
            await asyncio.sleep(0.02)
    shown = await command("show", TASK)
    assert [line.split()[0] for line in shown.splitlines() if line.startswith((" a ", " b "))] == ["a", "b"]
    assert "withdrawn at" in shown, "b stays in the table, with the time"
    rows = [line.split() for line in (await command("contexts", TASK)).splitlines() if line.strip()[:1].isdigit()]
    assert [(row[0], row[3], row[4]) for row in rows] == [("1", "1", "0"), ("2", "2", "1"), ("3", "1", "2")]
    assert rows[0][5] == rows[2][5]
    assert "withdrawn" in await command("ledger", TASK)
    assert (await command("ledger", TASK, "--verify")).count("yes") == 5


async def test_every_way_out_of_a_stuck_round_works_as_the_page_says(command: Command, ifed: CommandLine) -> None:
    app_ = ifed.server._app
    async with AggregatorClient("http://aggregator", ADMIN_TOKEN, transport=httpx.ASGITransport(app_)) as admin:
        await admin.create_task(spec("stuck", clients_expected=2, rounds=2))
        await admin.start("stuck")
        async with (
            SimulatedClient(app_, "n", (await admin.enrol("n")).token, value=1.0, examples=1) as north,
            SimulatedClient(app_, "s", (await admin.enrol("s")).token, value=1.0, examples=1) as south,
        ):
            for client in (north, south):
                await client.join_task("stuck")
            await north.contribute(await north.assignment("stuck", wait=5), "stuck")
            assert "1/2" in await command("show", "stuck")
            assert "takes contributions until" in await command("extend-round", "stuck", "1", "3600")
            (cancelled,) = json_lines(await command("cancel-round", "stuck", "1", "--json"))
            assert RoundInfo.model_validate_json(cancelled).state is RoundState.CANCELLED
            assert "stuck is paused" in await command("show", "stuck")
            assert "stuck is running" in await command("resume", "stuck")
            await north.contribute(await north.assignment("stuck", wait=5), "stuck")
            await command("close-round", "stuck", "2")
            assert (await north.assignment("stuck", wait=5)).round == 3
            assert (await south.assignment("stuck")).kind is AssignmentKind.CALIBRATION
            await command("withdraw", "stuck", "--client", "s", "--yes")
            assert (await north.run("stuck")).kind is AssignmentKind.DONE
        assert "stuck is finished" in await command("show", "stuck")


async def test_a_job_that_makes_a_task_may_run_again(ifed: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "task.json"
    file.write_text(spec("kept").model_dump_json())
    assert "kept is draft" in await ifed("task", "create", str(file))
    with pytest.raises(AlreadyExists):
        await ifed("task", "create", str(file))
    assert "kept is running" in await ifed("task", "create", str(file), "--start", "--if-not-exists")
    assert "kept is running" in await ifed("task", "create", str(file), "--start", "--keep")
