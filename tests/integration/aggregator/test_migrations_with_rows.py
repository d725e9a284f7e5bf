"""A database with rows in every table, of every released revision, is migrated and read by the repositories of today."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.util import CommandError
from sqlalchemy import Connection, MetaData, insert, text

import services.aggregator.migrations.versions
from ifed.messages.enums import HeadQuestion, Role, RoundKind, RoundState, TaskState
from ifed.messages.events import DeliveryState, EventKind
from ifed.tensors.confidence import ConfidenceBin, ConfidenceBins
from services.aggregator.domain.aggregates import Aggregate, HeadRevision
from services.aggregator.domain.evaluation import EvaluationResult, LabelResult
from services.aggregator.domain.task import Task
from services.aggregator.migrate import configuration, migrate, upgrade
from services.aggregator.settings import Settings
from services.aggregator.storage.database import UnitOfWork, connect
from services.aggregator.storage.tables import metadata
from testing.factories import ADMIN_TOKEN, LABELS, NOON, identity, probe, spec

REVISIONS = sorted(path.name[:4] for path in (Path(services.aggregator.migrations.versions.__file__).parent).glob("0*.py"))
CONTEXT, FIRST, SECOND, UPDATE = b"a context vector", b"version 0", b"version 1", b"an update"
SPEC = spec(identity=identity(), probe=probe(), layers="upper_half")
HOUR = timedelta(hours=1)


def rows() -> dict[str, list[dict[str, Any]]]:
    """Return rows of a task in its evaluation round, by table, in an order that foreign keys allow. A revision stores the columns it has."""
    closed = {
        "task": "sentiment",
        "opened_at": NOON,
        "deadline": NOON + HOUR,
        "closed_at": NOON + HOUR,
        "expected": 1,
        "required": 1,
        "contributed": 1,
    }
    evaluation = {"accuracy": 0.75, "macro_f1": 0.7, "examples": 8}
    aggregate = {"task": "sentiment", "created_at": NOON, "weight": 10}
    sent = {"task": "sentiment", "client": "a", "received_at": NOON, "weight": 10, "seconds": 1.5}
    return {
        "parties": [{"name": "a", "role": "client", "token_hash": "1" * 64, "enrolled_at": NOON, "last_seen_at": NOON}],
        "tasks": [
            {
                "name": "sentiment",
                "spec": SPEC.model_dump(mode="json"),
                "state": "running",
                "created_at": NOON,
                "version": 1,
                "served": 1,
                "calibrated": 1,
            }
        ],
        "memberships": [
            {"task": "sentiment", "client": "a", "joined_at": NOON, "label_counts": {LABELS[0]: 4, LABELS[1]: 6}, "holdout": 8}
        ],
        "rounds": [
            closed | {"number": 1, "kind": "context", "state": "closed", "produced": 0},
            closed
            | evaluation
            | {
                "number": 2,
                "kind": "calibration",
                "state": "closed",
                "version": 0,
                "produced": 1,
                "context": 1,
                "attempt": 2,
                "label_bias": [0.25, -0.25],
                "labels": [[4, 4, 3], [4, 4, 3]],
                "confidence": [[0, 0, 0.0]] * 9 + [[8, 6, 7.5]],
            },
            {"task": "sentiment", "opened_at": NOON, "deadline": NOON + HOUR, "expected": 1, "required": 1, "contributed": 0}
            | {"number": 3, "kind": "evaluation", "state": "open", "version": 1, "context": 1},
        ],
        "head_queries": [
            {"task": "sentiment", "number": 2, "body": b"a query", "next_question": "product", "next_body": b"the next"}
        ],
        "seats": [{"task": "sentiment", "number": number, "client": "a"} for number in (1, 2, 3)],
        "contributions": [
            sent | {"number": 1, "digest": "2" * 64, "size": len(CONTEXT), "body": CONTEXT},
            sent
            | {"number": 2, "digest": "3" * 64, "size": len(UPDATE), "body": UPDATE, "loss": 0.5, "correct": 6, "evaluated": 8},
        ],
        "contexts": [aggregate | {"version": 1, "digest": "4" * 64, "round": 1, "body": CONTEXT}],
        "versions": [
            aggregate | {"version": 0, "digest": "5" * 64, "round": 1, "body": FIRST, "calibrated": 0},
            aggregate | {"version": 1, "digest": "6" * 64, "round": 2, "body": SECOND, "calibrated": 1},
        ],
        "head_revisions": [
            {"task": "sentiment", "solve": 2, "changes": 1, "created_at": NOON, "weight": 10, "digest": "9" * 64, "body": b"a head"}
        ],
        "enrolments": [{"code_hash": "7" * 64, "name": "b", "role": "reader", "created_at": NOON, "expires_at": NOON + HOUR}],
        "audit": [{"at": NOON, "actor": "admin", "action": "POST /v1/tasks", "target": "/v1/tasks", "request_id": "r1"}],
        "sketches": [{"task": "sentiment", "key": "8" * 64, "numbers": "[0.6, 0.8]"}],
        "events": [
            {"at": NOON, "kind": "round.closed", "task": "sentiment", "round": 2, "round_kind": "calibration", "version": 1}
        ],
        "webhooks": [
            {"name": "pager", "url": "https://example.org/", "secret": "whsec_x", "created_at": NOON, "kinds": ["round.closed"]}
        ],
        "deliveries": [{"webhook": "pager", "event": 1, "state": "pending", "attempts": 2, "next_at": NOON, "status": 503}],
    }


def fill(connection: Connection, revision: str) -> set[str]:
    """Upgrade to `revision` and insert the rows of every table that it has; return the tables."""
    upgrade(connection, revision)
    schema = MetaData()
    schema.reflect(connection)
    tables = set(schema.tables) - {"alembic_version"}
    assert tables <= set(rows()), "add rows of the new table"
    sqlite = connection.dialect.name == "sqlite"  # it stores times without a zone
    before_heads = revision < "0006"  # a task said neither how its labels are read nor where is injected
    for name, table_rows in rows().items():
        for row in table_rows if name in tables else ():
            if name == "tasks" and before_heads:
                row["spec"] = {key: value for key, value in row["spec"].items() if key not in ("head", "injection")}
            values = {column: value for column, value in row.items() if column in schema.tables[name].c}
            stored = {
                column: value.replace(tzinfo=None) if sqlite and hasattr(value, "tzinfo") else value
                for column, value in values.items()
            }
            connection.execute(insert(schema.tables[name]).values(**stored))
    return tables


async def check_first_release(work: UnitOfWork, tables: set[str], revision: str) -> None:
    """Check the rows of the tables that the first release had."""
    party = await work.parties.by_token("1" * 64)
    assert party is not None
    assert (party.name, party.role, party.enrolled_at, party.last_seen_at, party.revoked_at) == ("a", Role.CLIENT, NOON, NOON, None)
    expected = Task(SPEC, NOON, TaskState.RUNNING, version=1, served=1, calibrated=1)
    assert await work.tasks.get("sentiment") == expected
    (membership,) = await work.memberships.of_task("sentiment")
    assert (dict(membership.label_counts), membership.holdout, membership.withdrawn_at) == ({LABELS[0]: 4, LABELS[1]: 6}, 8, None)
    context, calibration, evaluation = await work.rounds.page("sentiment", 0, 10)
    assert (context.kind, context.state, context.context, context.attempt) == (RoundKind.CONTEXT, RoundState.CLOSED, None, 1)
    assert (calibration.produced, calibration.context) == (1, 1)
    repeats = "sketches" in tables  # since the same revision, rounds have attempts and label biases
    measured = EvaluationResult(0.75, 0.7, 8, (0.25, -0.25) if repeats else None)
    if revision >= "0007":
        bins = ConfidenceBins((ConfidenceBin(),) * 9 + (ConfidenceBin(8, 6, 7.5),))
        measured = replace(measured, labels=(LabelResult(4, 4, 3),) * 2, confidence=bins)
    assert calibration.evaluation == measured
    assert calibration.attempt == (2 if repeats else 1)
    assert (evaluation.state, evaluation.version, evaluation.context, evaluation.expected) == (RoundState.OPEN, 1, 1, 1)
    assert await work.rounds.missing("sentiment", 3) == ["a"]
    assert await work.rounds.missing("sentiment", 2) == []
    lines = await work.rounds.ledger("sentiment", (0, "", 0), 10)
    assert [(line.round, line.entry.digest, line.change, line.removed) for line in lines] == [
        (1, "2" * 64, 0, None),
        (2, "3" * 64, 0, None),
    ]
    assert (lines[1].entry.loss, lines[1].entry.correct, lines[1].entry.evaluated, lines[1].entry.seconds) == (0.5, 6, 8, 1.5)
    assert [body async for body in work.rounds.bodies("sentiment", 2)] == [("a", 10, UPDATE)]
    assert [part.body async for part in work.parts.bodies("sentiment", 1, 0)] == [CONTEXT]
    assert await work.aggregates.context("sentiment") == Aggregate("sentiment", 1, "4" * 64, NOON, 1, 10)
    assert await work.aggregates.context_body("sentiment", 1) == CONTEXT
    assert await work.aggregates.coefficients("sentiment", 1) == Aggregate("sentiment", 1, "6" * 64, NOON, 2, 10, calibrated=1)
    assert [await work.aggregates.coefficients_body("sentiment", version) for version in (0, 1)] == [FIRST, SECOND]


async def check_later_tables(work: UnitOfWork, tables: set[str]) -> None:
    """Check the rows of the tables that later releases added, as far as they were there."""
    if "enrolments" in tables:
        (line,) = await work.audit.page(0, 10)
        assert (line.at, line.actor, line.action, line.request_id) == (NOON, "admin", "POST /v1/tasks", "r1")
        code = await work.enrolments.take("7" * 64, NOON)
        assert code is not None
        assert (code.name, code.role, code.expires_at) == ("b", Role.READER, NOON + HOUR)
    if "head_queries" in tables:
        assert await work.heads.query("sentiment", 2) == b"a query"
        assert await work.heads.asked_after("sentiment", 2) == (HeadQuestion.PRODUCT, b"the next")
    if "head_revisions" in tables:
        revision = await work.heads.revision("sentiment", 2)
        assert revision == HeadRevision("sentiment", 2, 1, NOON, 10, "9" * 64)
        assert await work.heads.revision_body(revision) == b"a head"
    assert await work.sketches.find("sentiment") == (("8" * 64, [0.6, 0.8]) if "sketches" in tables else None)
    if "events" in tables:
        (event,) = await work.events.page(0, 10)
        assert (event.kind, event.at, event.round, event.round_kind, event.version) == (
            EventKind.ROUND_CLOSED,
            NOON,
            2,
            RoundKind.CALIBRATION,
            1,
        )
        ((webhook, pending),) = await work.webhooks.page(None, 10)
        assert (webhook.url, webhook.kinds, webhook.task, pending) == ("https://example.org/", (EventKind.ROUND_CLOSED,), None, 1)
        (delivery,) = await work.webhooks.deliveries("pager", 0, 10)
        assert (delivery.state, delivery.attempts, delivery.status, delivery.next_at) == (DeliveryState.PENDING, 2, 503, NOON)


@pytest.mark.parametrize("revision", REVISIONS)
async def test_rows_of_a_released_revision_are_read_after_the_migration(empty_stack: Settings, revision: str) -> None:
    database = connect(empty_stack.database_url)
    async with database.engine.begin() as connection:
        tables = await connection.run_sync(lambda sync: fill(sync, revision))
    await migrate(database.engine)
    async with database.unit_of_work() as work:
        await check_first_release(work, tables, revision)
        await check_later_tables(work, tables)
    await database.close()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("UPDATE contributions SET change = 1 WHERE number = 1", "1 additions to context vectors"),
        ("UPDATE contributions SET removed = 1 WHERE number = 1", "1 withdrawn contributions"),
        ("UPDATE memberships SET withdrawn_at = joined_at", "1 withdrawn clients"),
        ("UPDATE contexts SET version = 2", "1 revised context vectors"),
        ("UPDATE versions SET withdrawn_at = created_at WHERE version = 1", "1 versions that a roll-back withdrew"),
    ],
)
async def test_a_downgrade_that_would_change_what_counts_is_refused_and_changes_nothing(
    sqlite_database: str, change: str, named: str
) -> None:
    database = connect(Settings(database_url=sqlite_database, admin_token=ADMIN_TOKEN).database_url)
    async with database.engine.begin() as connection:
        await connection.run_sync(lambda sync: fill(sync, "0005"))
        await connection.execute(text(change))
    with pytest.raises(CommandError, match=named):
        async with database.engine.begin() as connection:
            await connection.run_sync(lambda sync: command.downgrade(configuration(sync), "base"))
    async with database.engine.connect() as connection:
        assert (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar_one() == "0005"
        assert (await connection.execute(text("SELECT COUNT(*) FROM webhooks"))).scalar_one() == 1
    await database.close()


def test_there_are_rows_for_every_table_of_today() -> None:
    assert set(rows()) == set(metadata.tables)
