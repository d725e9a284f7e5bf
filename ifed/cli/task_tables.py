"""The tables of `ifed task …`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ifed.cli.console import percent, size
from ifed.cli.tables import Column, FittedTable
from ifed.messages.evaluations import EvaluationDetails
from ifed.messages.rounds import ContextInfo, LedgerEntry, Replay, RoundInfo, TaskInfo, ThresholdResult

LABELS_IN_FULL = 8
MOST_ERRORS = 20
SHORT_DIGEST = 12


def tasks_table(tasks: Sequence[TaskInfo]) -> FittedTable:
    """Return a table of tasks, each with the accuracy of the version that it serves."""
    table = FittedTable(
        Column("task", wraps=True),
        "state",
        Column("model", optional=3, wraps=True),
        Column("clients", optional=1),
        Column("round", optional=2),
        "served",
        "accuracy",
    )
    for task in tasks:
        table.add_row(
            task.spec.name,
            task.state,
            task.spec.model,
            str(len(task.members)),
            f"{task.round.number} {task.round.kind}" if task.round else "–",
            "–" if task.served is None else str(task.served),
            percent(served_accuracy(task)),
        )
    return table


def served_accuracy(task: TaskInfo) -> float | None:
    """Return the accuracy of the version that a task serves; None if it serves none, or one that was not evaluated."""
    return next((evaluation.accuracy for evaluation in task.evaluations if evaluation.version == task.served), None)


def members_table(task: TaskInfo) -> FittedTable:
    """Return a table of the clients that joined a task; a withdrawn one stays in it, with the time of its withdrawal."""
    table = FittedTable(
        Column("client", wraps=True),
        Column("joined", optional=2),
        "examples",
        Column("by label", optional=1, wraps=True, least=24),
        "held out",
        *(["withdrawn at"] if task.withdrawn else []),
    )
    for member in task.members:
        table.add_row(
            member.client,
            f"{member.joined_at:%Y-%m-%d %H:%M:%S}",
            str(sum(member.label_counts.values())),
            _by_label(member.label_counts),
            str(member.holdout),
            *([""] if task.withdrawn else []),
        )
    for withdrawal in task.withdrawn:
        table.add_row(withdrawal.client, "", "", "", "", f"{withdrawal.withdrawn_at:%Y-%m-%d %H:%M:%S}")
    return table


def _by_label(counts: Mapping[str, int]) -> str:
    """Return `40 negative, 60 positive`, and of many labels the smallest and the largest count alone."""
    if len(counts) > LABELS_IN_FULL:
        return f"{len(counts)} labels, {min(counts.values())} to {max(counts.values())} each"
    return ", ".join(f"{count} {label}" for label, count in counts.items())


def rounds_table(rounds: Sequence[RoundInfo]) -> FittedTable:
    """Return a table of rounds, oldest first, each with its base version, which is the one it started from, and that version's accuracy."""
    table = FittedTable(
        "#",
        "kind",
        "state",
        "received",
        Column("seconds", optional=3),
        Column("loss", optional=1),
        Column("sent", optional=2),
        "base\nversion",
        "accuracy",
        Column("F1", optional=4),
    )
    for round_ in rounds:
        contributors = [client for client in round_.clients if client.contributed_at]
        evaluation = round_.evaluation
        table.add_row(
            str(round_.number),
            round_.kind,
            round_.state,
            f"{len(contributors)}/{len(round_.expected)}",
            f"{(round_.closed_at - round_.opened_at).total_seconds():.1f}" if round_.closed_at else "…",
            "" if round_.loss is None else f"{round_.loss:.3f}",
            size(sum(client.bytes_up or 0 for client in contributors)),
            "" if round_.version is None else str(round_.version),
            percent(evaluation.accuracy) if evaluation else "",
            f"{evaluation.macro_f1:.3f}" if evaluation else "",
        )
    return table


def labels_table(evaluation: EvaluationDetails) -> FittedTable:
    """Return a table of labels, each with its precision and recall."""
    table = FittedTable(Column("label", wraps=True), "texts", "predicted", "precision", "recall")
    for label in evaluation.labels:
        table.add_row(label.label, str(label.texts), str(label.predicted), percent(label.precision), percent(label.recall))
    return table


def thresholds_table(thresholds: Sequence[ThresholdResult]) -> FittedTable:
    """Return a table of thresholds below which a task might abstain, each with what would be answered, and how well."""
    table = FittedTable("abstain below", "answered", "accuracy of these")
    for threshold in thresholds:
        table.add_row(f"{threshold.abstain_below:.1f}", percent(threshold.answered), percent(threshold.accuracy))
    return table


def confusion_table(evaluation: EvaluationDetails) -> FittedTable:
    """Return the confusion matrix, a row for each true label; of many labels, a table of the most frequent errors alone."""
    names = [label.label for label in evaluation.labels]
    if len(names) > LABELS_IN_FULL:
        return _errors_table(names, evaluation.confusion)
    table = FittedTable(Column("true label", wraps=True), *(Column(name, wraps=True, least=6) for name in names))
    for name, counts in zip(names, evaluation.confusion, strict=True):
        table.add_row(name, *map(str, counts))
    return table


def _errors_table(names: Sequence[str], confusion: Sequence[Sequence[int]]) -> FittedTable:
    errors = [
        (count, names[truth], names[prediction])
        for truth, row in enumerate(confusion)
        for prediction, count in enumerate(row)
        if count and truth != prediction
    ]
    table = FittedTable(Column("true label", wraps=True), Column("predicted", wraps=True), "texts")
    for count, truth, prediction in sorted(errors, key=lambda error: -error[0])[:MOST_ERRORS]:
        table.add_row(truth, prediction, str(count))
    return table


def client_evaluations_table(evaluation: EvaluationDetails) -> FittedTable:
    """Return a table of clients, each with the accuracy on its own held-out texts."""
    table = FittedTable(Column("client", wraps=True), "texts", "correct", "accuracy")
    for client in evaluation.clients:
        table.add_row(client.client, str(client.texts), str(client.correct), percent(client.accuracy))
    return table


def contexts_table(contexts: Sequence[ContextInfo]) -> FittedTable:
    """Return a table of the versions of a task's context vector."""
    table = FittedTable("version", "made", "demonstrations", "changes", "sha256")
    for context in contexts:
        made = f"{context.created_at:%m-%d %H:%M:%S}"
        table.add_row(str(context.version), made, str(context.examples), str(context.changes), context.digest[:SHORT_DIGEST])
    return table


def ledger_table(entries: Sequence[LedgerEntry]) -> FittedTable:
    """Return a table of contributions, each with the state of its round, or that it was added later or withdrawn."""
    table = FittedTable(
        "#",
        "kind",
        "state",
        Column("client", wraps=True),
        "examples",
        Column("sent", optional=1),
        Column("received", optional=2),
        Column("sha256", optional=3),
    )
    for entry in entries:
        state = "withdrawn" if entry.withdrawn else "added" if entry.change else entry.state
        cells = (str(entry.round), entry.kind, state, entry.client, str(entry.examples), size(entry.bytes))
        table.add_row(*cells, f"{entry.received_at:%m-%d %H:%M:%S}", entry.digest[:SHORT_DIGEST])
    return table


def replays_table(replays: Sequence[Replay]) -> FittedTable:
    """Return a table of replayed aggregates, each with the stored and the computed digest."""
    table = FittedTable(
        "#",
        "kind",
        Column("contributions", optional=1),
        "version",
        Column("stored", optional=2),
        Column("replayed", optional=3),
        "proven",
    )
    for replay in replays:
        version = "–" if replay.version is None else str(replay.version)
        digests = (replay.stored or "–")[:SHORT_DIGEST], (replay.replayed or "–")[:SHORT_DIGEST]
        proven = "yes" if replay.proven else "withdrawn" if replay.deleted else "NO"
        table.add_row(str(replay.round), replay.kind, str(replay.contributions), version, *digests, proven)
    return table
