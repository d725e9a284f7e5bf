"""`ifed task …`: define tasks, run their rounds, and verify the results from the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.table import Table

from ifed.cli.console import DEFAULT_AGGREGATOR, AggregatorUrl, Token, call_aggregator, compact_table, console, percent, say, size
from ifed.clients import AggregatorClient
from ifed.errors import AlreadyExists, BadData, Conflict
from ifed.messages.enums import RoundState, TaskState
from ifed.messages.rounds import Replay, RoundInfo, Start, TaskInfo
from ifed.messages.tasks import TaskSpec

app = typer.Typer(help="Define tasks, run their rounds, see how far they are.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="Name of the task.")]
Number = Annotated[int, typer.Argument(help="Number of the round.")]


@app.command("create")
def create(
    file: Annotated[
        Path,
        typer.Argument(
            help="The task as JSON: name, labels, template, model, layers, groups, policy.", exists=True, dir_okay=False
        ),
    ],
    token: Token,
    aggregator: AggregatorUrl = DEFAULT_AGGREGATOR,
    start: Annotated[bool, typer.Option("--start", help="Start it at once.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave a task of this name that is there as it is.")] = False,
) -> None:
    """Define a task from a JSON file."""
    try:
        spec = TaskSpec.model_validate_json(file.read_text())
    except ValidationError as reason:
        raise BadData(f"{file} is not a task: {reason}") from reason

    async def work(service: AggregatorClient) -> TaskInfo:
        try:
            made = await service.create_task(spec)
        except AlreadyExists:
            if not keep:
                raise
            made = await service.task(spec.name)
        return await service.start(spec.name) if start and made.state is TaskState.DRAFT else made

    _show(call_aggregator(aggregator, token, work))


@app.command("list")
def list_tasks(token: Token, aggregator: AggregatorUrl = DEFAULT_AGGREGATOR) -> None:
    """List all tasks."""
    table = compact_table("task", "state", "model", "clients", "round", "served", "accuracy")
    for task in call_aggregator(aggregator, token, lambda service: service.tasks()):
        table.add_row(
            task.spec.name,
            task.state,
            task.spec.model,
            str(len(task.members)),
            f"{task.round.number} {task.round.kind}" if task.round else "–",
            "–" if task.served is None else str(task.served),
            percent(_accuracy(task)),
        )
    console.print(table)


@app.command("show")
def show(name: Name, token: Token, aggregator: AggregatorUrl = DEFAULT_AGGREGATOR) -> None:
    """Show one task, its clients and its rounds."""

    async def work(service: AggregatorClient) -> tuple[TaskInfo, list[RoundInfo]]:
        return await service.task(name), await service.rounds(name)

    task, rounds = call_aggregator(aggregator, token, work)
    _show(task)
    members = compact_table("client", "joined", "examples", "held out")
    for member in task.members:
        members.add_row(
            member.client,
            f"{member.joined_at:%Y-%m-%d %H:%M:%S}",
            ", ".join(f"{count} {label}" for label, count in member.label_counts.items()),
            str(member.holdout),
        )
    console.print(members)
    console.print(rounds_table(rounds))
    for round_ in rounds:
        if round_.reason:
            say(f"round {round_.number} {round_.state}: {round_.reason}")


@app.command("start")
def start(
    name: Name,
    token: Token,
    aggregator: AggregatorUrl = DEFAULT_AGGREGATOR,
    warm: Annotated[bool, typer.Option("--warm", help="Begin from the coefficients of the most similar finished task.")] = False,
    source: Annotated[str | None, typer.Option("--from", help="Begin from the coefficients of this finished task.")] = None,
) -> None:
    """Start a task, or start a failed one again at the round that failed."""
    how = Start(warm_start=warm and source is None, warm_start_from=source)
    _show(call_aggregator(aggregator, token, lambda service: service.start(name, how)))


@app.command("pause")
def pause(name: Name, token: Token, aggregator: AggregatorUrl = DEFAULT_AGGREGATOR) -> None:
    """Open no further round until the task is resumed."""
    _show(call_aggregator(aggregator, token, lambda service: service.pause(name)))


@app.command("resume")
def resume(name: Name, token: Token, aggregator: AggregatorUrl = DEFAULT_AGGREGATOR) -> None:
    """Resume a paused task."""
    _show(call_aggregator(aggregator, token, lambda service: service.resume(name)))


@app.command("delete")
def delete(
    name: Name,
    token: Token,
    aggregator: AggregatorUrl = DEFAULT_AGGREGATOR,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a task with its rounds, contributions and adapters."""
    yes or typer.confirm(f"Delete {name} with its rounds, contributions and adapters?", abort=True)
    call_aggregator(aggregator, token, lambda service: service.delete_task(name))
    console.print(f"{name} is deleted")


@app.command("close-round")
def close_round(name: Name, number: Number, token: Token, aggregator: AggregatorUrl = DEFAULT_AGGREGATOR) -> None:
    """Close an open round now, with the contributions it has."""
    console.print(rounds_table([call_aggregator(aggregator, token, lambda service: service.close_round(name, number))]))


@app.command("cancel-round")
def cancel_round(name: Name, number: Number, token: Token, aggregator: AggregatorUrl = DEFAULT_AGGREGATOR) -> None:
    """Cancel an open round; the task pauses."""
    console.print(rounds_table([call_aggregator(aggregator, token, lambda service: service.cancel_round(name, number))]))


@app.command("extend-round")
def extend_round(
    name: Name,
    number: Number,
    seconds: Annotated[float, typer.Argument(help="Seconds to add to its deadline.")],
    token: Token,
    aggregator: AggregatorUrl = DEFAULT_AGGREGATOR,
) -> None:
    """Give an open round more time."""
    round_ = call_aggregator(aggregator, token, lambda service: service.extend_round(name, number, seconds))
    say(f"round {number} of {name} takes contributions until {round_.deadline:%Y-%m-%d %H:%M:%S} UTC")


@app.command("rollback")
def rollback(
    name: Name,
    version: Annotated[int, typer.Argument(help="Version to serve and to go on from.")],
    token: Token,
    aggregator: AggregatorUrl = DEFAULT_AGGREGATOR,
) -> None:
    """Serve an earlier version again; a running task pauses."""
    _show(call_aggregator(aggregator, token, lambda service: service.rollback(name, version)))


@app.command("ledger")
def ledger(
    name: Name,
    token: Token,
    aggregator: AggregatorUrl = DEFAULT_AGGREGATOR,
    verify: Annotated[bool, typer.Option("--verify", help="Aggregate every closed round again and compare byte for byte.")] = False,
) -> None:
    """List every contribution; with --verify, compute every aggregate again from them and compare."""
    _verify(name, aggregator, token) if verify else _list_ledger(name, aggregator, token)


@app.command("contexts")
def contexts(name: Name, token: Token, aggregator: AggregatorUrl = DEFAULT_AGGREGATOR) -> None:
    """List the versions of a task's context vector; additions and withdrawals make new ones."""
    table = compact_table("version", "made", "demonstrations", "changes", "sha256")
    for context in call_aggregator(aggregator, token, lambda service: service.contexts(name)):
        made = f"{context.created_at:%m-%d %H:%M:%S}"
        table.add_row(str(context.version), made, str(context.examples), str(context.changes), context.digest[:12])
    console.print(table)


@app.command("withdraw")
def withdraw(
    name: Name,
    token: Token,
    aggregator: AggregatorUrl = DEFAULT_AGGREGATOR,
    client: Annotated[str | None, typer.Option(help="The client to withdraw, with an admin's token; else the token's own.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Withdraw a client from a task permanently, and its demonstrations from the context vector."""
    yes or typer.confirm(f"Withdraw {client or 'this client'} from {name} permanently?", abort=True)
    withdrawal = call_aggregator(aggregator, token, lambda service: service.withdraw(name, client))
    say(f"{withdrawal.client} withdrew from {name} at {withdrawal.withdrawn_at:%Y-%m-%d %H:%M:%S} UTC")


def rounds_table(rounds: list[RoundInfo]) -> Table:
    """Return a table of the rounds, oldest first, each with the version it started `from` and the accuracy of that version."""
    table = compact_table("#", "kind", "state", "came", "seconds", "loss", "sent", "from", "accuracy", "F1")
    for round_ in rounds:
        came = [client for client in round_.clients if client.contributed_at]
        evaluation = round_.evaluation
        table.add_row(
            str(round_.number),
            round_.kind,
            round_.state,
            f"{len(came)}/{len(round_.expected)}",
            f"{(round_.closed_at - round_.opened_at).total_seconds():.1f}" if round_.closed_at else "…",
            "" if round_.loss is None else f"{round_.loss:.3f}",
            size(sum(client.bytes_up or 0 for client in came)),
            "" if round_.version is None else str(round_.version),
            percent(evaluation.accuracy) if evaluation else "",
            f"{evaluation.macro_f1:.3f}" if evaluation else "",
        )
    return table


def _accuracy(task: TaskInfo) -> float | None:
    return next((evaluation.accuracy for evaluation in task.evaluations if evaluation.version == task.served), None)


def _show(task: TaskInfo) -> None:
    say(f"{task.spec.name} is {task.state}{f': {task.reason}' if task.reason else ''}")
    say(f"  model {task.spec.model}, labels {', '.join(task.spec.labels)}, {len(task.members)} clients joined")
    if task.served is not None:
        say(f"  serves version {task.served}, accuracy {percent(_accuracy(task))} on the clients' held-out examples")


def _list_ledger(name: str, aggregator: str, token: str) -> None:
    table = compact_table("#", "kind", "round", "client", "examples", "sent", "received", "sha256")
    for entry in call_aggregator(aggregator, token, lambda service: service.ledger(name)):
        state = "withdrawn" if entry.withdrawn else "added" if entry.change else entry.state
        cells = (str(entry.round), entry.kind, state, entry.client, str(entry.examples), size(entry.bytes))
        table.add_row(*cells, f"{entry.received_at:%m-%d %H:%M:%S}", entry.digest[:12])
    console.print(table)


def _verify(name: str, aggregator: str, token: str) -> None:
    async def work(service: AggregatorClient) -> list[Replay]:
        closed = [round_.number for round_ in await service.rounds(name) if round_.state is RoundState.CLOSED]
        later = [context.version for context in await service.contexts(name) if context.version > 1]  # the first is its round's
        rounds = [await service.replay(name, number) for number in closed]
        return rounds + [await service.replay_context(name, version) for version in later]

    replays = call_aggregator(aggregator, token, work)
    table = compact_table("#", "kind", "contributions", "version", "kept", "replayed", "proven")
    for replay in replays:
        version = "–" if replay.version is None else str(replay.version)
        digests = (replay.stored or "–")[:12], (replay.replayed or "–")[:12]
        table.add_row(
            str(replay.round), replay.kind, str(replay.contributions), version, *digests, "yes" if replay.proven else "NO"
        )
    console.print(table)
    if failed := [str(replay.round) for replay in replays if not replay.proven]:
        raise Conflict(f"the ledger of {name} does not reproduce what is stored for round {', '.join(failed)}")
