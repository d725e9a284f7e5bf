"""`ifed webhook …`: register receivers of events and list the deliveries to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ifed.cli.console import (
    DEFAULT_AGGREGATOR,
    AggregatorUrl,
    AsJson,
    Token,
    call_aggregator,
    print_json,
    say,
    say_secret,
    show,
)
from ifed.cli.files import private_output
from ifed.cli.tables import Column, FittedTable
from ifed.messages.events import DeliveryInfo, EventKind, NewWebhook, WebhookInfo

app = typer.Typer(help="Have events posted to an address, and see what became of them.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="Name of the webhook.")]


@app.command("add")
def add(
    name: Name,
    url: Annotated[str, typer.Argument(help="Where events are posted.")],
    token: Token,
    aggregator: AggregatorUrl = DEFAULT_AGGREGATOR,
    task: Annotated[str | None, typer.Option(help="Send only events of this task.")] = None,
    event: Annotated[list[EventKind] | None, typer.Option(help="Send only events of this kind; may be given again.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the secret to this file, for its owner alone.")
    ] = None,
) -> None:
    """Register a webhook, and print the secret that signs its deliveries, or write it to a file. The secret cannot be shown again."""
    wanted = NewWebhook(name=name, url=url, task=task, events=event or None)
    if output is not None:
        with private_output(output) as write:
            write(call_aggregator(aggregator, token, lambda service: service.register_webhook(wanted)).secret)
        say(f"{name} is registered; its secret is in {output}")
        return
    made = call_aggregator(aggregator, token, lambda service: service.register_webhook(wanted))
    say_secret(f"{made.name} is registered. Its secret, shown this once:\n\n    {made.secret}\n")


@app.command("list")
def list_webhooks(token: Token, aggregator: AggregatorUrl = DEFAULT_AGGREGATOR, as_json: AsJson = False) -> None:
    """List the webhooks and the number of their pending deliveries."""
    webhooks = call_aggregator(aggregator, token, lambda service: service.webhooks())
    print_json(*webhooks) if as_json else show(webhooks_table(webhooks))


def webhooks_table(webhooks: Sequence[WebhookInfo]) -> FittedTable:
    """Return a table of webhooks."""
    table = FittedTable(
        Column("name", wraps=True),
        Column("task", optional=1, wraps=True),
        Column("events", optional=2, wraps=True),
        "pending",
        Column("url", wraps=True),
    )
    for webhook in webhooks:
        kinds = "all" if webhook.events is None else ", ".join(webhook.events)
        table.add_row(webhook.name, webhook.task or "all", kinds, str(webhook.pending), webhook.url)
    return table


@app.command("remove")
def remove(name: Name, token: Token, aggregator: AggregatorUrl = DEFAULT_AGGREGATOR) -> None:
    """Remove a webhook."""
    call_aggregator(aggregator, token, lambda service: service.remove_webhook(name))
    say(f"{name} is removed")


@app.command("deliveries")
def deliveries(name: Name, token: Token, aggregator: AggregatorUrl = DEFAULT_AGGREGATOR, as_json: AsJson = False) -> None:
    """List the deliveries of events to a webhook."""
    outcomes = call_aggregator(aggregator, token, lambda service: service.deliveries(name))
    print_json(*outcomes) if as_json else show(deliveries_table(outcomes))


def deliveries_table(deliveries: Sequence[DeliveryInfo]) -> FittedTable:
    """Return a table of deliveries, each with the outcome of its last attempt."""
    table = FittedTable(
        "event",
        Column("kind", optional=1),
        Column("task", optional=2, wraps=True),
        "state",
        Column("attempts", optional=3),
        "status",
        Column("error", wraps=True),
    )
    for delivery in deliveries:
        table.add_row(
            str(delivery.event.number),
            delivery.event.kind,
            delivery.event.task,
            delivery.state,
            str(delivery.attempts),
            "–" if delivery.status is None else str(delivery.status),
            delivery.error or "",
        )
    return table
