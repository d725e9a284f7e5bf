"""`ifed task …`: define tasks, run their rounds, and verify the results from the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, Field, ValidationError

from ifed.cli.console import (
    DEFAULT_AGGREGATOR,
    AggregatorUrl,
    AsJson,
    Token,
    call_aggregator,
    percent,
    print_json,
    say,
    show,
)
from ifed.cli.files import read_file
from ifed.cli.task_tables import (
    client_evaluations_table,
    confusion_table,
    contexts_table,
    labels_table,
    ledger_table,
    members_table,
    replays_table,
    rounds_table,
    served_accuracy,
    tasks_table,
    thresholds_table,
)
from ifed.clients import AggregatorClient
from ifed.errors import AlreadyExists, BadArguments, Conflict
from ifed.messages.enums import RoundState, TaskState
from ifed.messages.evaluations import EvaluationDetails
from ifed.messages.rounds import Replay, RoundInfo, Start, TaskChanges, TaskInfo
from ifed.messages.tasks import TaskSpec
from ifed.messages.validation import describe_errors

app = typer.Typer(help="Define tasks, run their rounds, see how far they are.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="Name of the task.")]
Number = Annotated[int, typer.Argument(help="Number of the round.")]


@app.command("create")
def create(
    file: Annotated[Path, typer.Argument(help="The task as JSON: name, labels, template, model, layers, groups, policy.")],
    token: Token,
    aggregator: AggregatorUrl = DEFAULT_AGGREGATOR,
    start: Annotated[bool, typer.Option("--start", help="Start it at once.")] = False,
    if_not_exists: Annotated[
        bool, typer.Option("--if-not-exists", "--keep", help="Leave a task of this name as it is, if there is one.")
    ] = False,
) -> None:
    """Define a task from a JSON file."""
    try:
        spec = TaskSpec.model_validate_json(read_file(file))
    except ValidationError as reason:
        raise BadArguments(f"{file} is not a task: {describe_errors(reason.errors())}") from reason

    async def work(service: AggregatorClient) -> TaskInfo:
        try:
            made = await service.create_task(spec)
        except AlreadyExists:
            if not if_not_exists:
                raise
            made = await service.task(spec.name)
        return await service.start(spec.name) if start and made.state is TaskState.DRAFT else made

    _show(call_aggregator(aggregator, token, work))


@app.command("list")
def list_tasks(token: Token, aggregator: AggregatorUrl = DEFAULT_AGGREGATOR, as_json: AsJson = False) -> None:
    """List all tasks."""
    tasks = call_aggregator(aggregator, token, lambda service: service.tasks())
    print_json(*tasks) if as_json else show(tasks_table(tasks))


class TaskReport(BaseModel):
    """What `ifed task show --json` prints."""

    task: TaskInfo
    rounds: list[RoundInfo]
    evaluations: list[EvaluationDetails] | None = Field(None, description="with --details: of each version, in detail")


@app.command("show")
def show_task(
    name: Name,
    token: Token,
    aggregator: AggregatorUrl = DEFAULT_AGGREGATOR,
    details: Annotated[
        bool,
        typer.Option(
            "--details", help="Also show each version's precision, recall, confusions and calibration, and each client's accuracy."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show one task, its clients and its rounds."""

    async def work(service: AggregatorClient) -> TaskReport:
        task, rounds = await service.task(name), await service.rounds(name)
        if not details:
            return TaskReport(task=task, rounds=rounds)
        versions = sorted({evaluation.version for evaluation in task.evaluations})
        return TaskReport(task=task, rounds=rounds, evaluations=[await service.evaluation(name, version) for version in versions])

    report = call_aggregator(aggregator, token, work)
    if as_json:
        print_json(report)
        return
    _show(report.task)
    show(members_table(report.task))
    show(rounds_table(report.rounds))
    for round_ in report.rounds:
        if round_.reason:
            say(f"round {round_.number} {round_.state}: {round_.reason}")
    for evaluation in report.evaluations or []:
        _show_evaluation(evaluation)


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
    say(f"{name} is deleted")


@app.command("close-round")
def close_round(
    name: Name, number: Number, token: Token, aggregator: AggregatorUrl = DEFAULT_AGGREGATOR, as_json: AsJson = False
) -> None:
    """Close an open round now, with the contributions it has."""
    round_ = call_aggregator(aggregator, token, lambda service: service.close_round(name, number))
    print_json(round_) if as_json else show(rounds_table([round_]))


@app.command("cancel-round")
def cancel_round(
    name: Name, number: Number, token: Token, aggregator: AggregatorUrl = DEFAULT_AGGREGATOR, as_json: AsJson = False
) -> None:
    """Cancel an open round; the task pauses."""
    round_ = call_aggregator(aggregator, token, lambda service: service.cancel_round(name, number))
    print_json(round_) if as_json else show(rounds_table([round_]))


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
    version: Annotated[int, typer.Argument(help="Version to serve and to continue from.")],
    token: Token,
    aggregator: AggregatorUrl = DEFAULT_AGGREGATOR,
) -> None:
    """Serve an earlier version again; a running task pauses."""
    _show(call_aggregator(aggregator, token, lambda service: service.rollback(name, version)))


@app.command("abstain")
def abstain(
    name: Name,
    below: Annotated[
        float, typer.Argument(min=0, max=1, help="Probability below which a text gets no label; 0 labels every text.")
    ],
    token: Token,
    aggregator: AggregatorUrl = DEFAULT_AGGREGATOR,
) -> None:
    """Give texts no label whose highest probability is too low."""
    _show(call_aggregator(aggregator, token, lambda service: service.change_task(name, TaskChanges(abstain_below=below))))


@app.command("ledger")
def ledger(
    name: Name,
    token: Token,
    aggregator: AggregatorUrl = DEFAULT_AGGREGATOR,
    verify: Annotated[bool, typer.Option("--verify", help="Aggregate every closed round again and compare byte for byte.")] = False,
    as_json: AsJson = False,
) -> None:
    """List every contribution; with --verify, compute every aggregate again from them and compare."""
    if verify:
        _verify(name, aggregator, token, as_json=as_json)
        return
    entries = call_aggregator(aggregator, token, lambda service: service.ledger(name))
    print_json(*entries) if as_json else show(ledger_table(entries))


@app.command("contexts")
def contexts(name: Name, token: Token, aggregator: AggregatorUrl = DEFAULT_AGGREGATOR, as_json: AsJson = False) -> None:
    """List the versions of a task's context vector; additions and withdrawals make new ones."""
    versions = call_aggregator(aggregator, token, lambda service: service.contexts(name))
    print_json(*versions) if as_json else show(contexts_table(versions))


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


def _show(task: TaskInfo) -> None:
    say(f"{task.spec.name} is {task.state}{f': {task.reason}' if task.reason else ''}")
    say(f"  model {task.spec.model}, labels {', '.join(task.spec.labels)}, {len(task.members)} clients joined")
    if task.served is not None:
        say(f"  serves version {task.served}, accuracy {percent(served_accuracy(task))} on the clients' held-out examples")
    if task.spec.abstain_below:
        say(f"  gives no label to a text whose highest probability is below {task.spec.abstain_below:g}")


def _show_evaluation(evaluation: EvaluationDetails) -> None:
    say(
        f"\nversion {evaluation.version}, evaluated in round {evaluation.round} on {evaluation.examples} held-out texts: "
        f"accuracy {percent(evaluation.accuracy)}, macro-F1 {evaluation.macro_f1:.3f}"
        + ("" if (error := evaluation.expected_calibration_error) is None else f", expected calibration error {error:.3f}")
    )
    for table in (labels_table(evaluation), confusion_table(evaluation), client_evaluations_table(evaluation)):
        show(table)
    if evaluation.thresholds is not None:
        show(thresholds_table(evaluation.thresholds))


def _verify(name: str, aggregator: str, token: str, *, as_json: bool) -> None:
    async def work(service: AggregatorClient) -> list[Replay]:
        closed = [round_.number for round_ in await service.rounds(name) if round_.state is RoundState.CLOSED]
        later = [context.version for context in await service.contexts(name) if context.version > 1]  # the first is its round's
        rounds = [await service.replay(name, number) for number in closed]
        return rounds + [await service.replay_context(name, version) for version in later]

    replays = call_aggregator(aggregator, token, work)
    print_json(*replays) if as_json else show(replays_table(replays))
    if failed := [str(replay.round) for replay in replays if not (replay.proven or replay.deleted)]:
        raise Conflict(f"the ledger of {name} does not reproduce what is stored for round {', '.join(failed)}")
