"""`ifed webhook …`: register receivers of events and list the deliveries to them."""

from __future__ import annotations

from typing import Annotated

import typer

from ifed.cli.console import DEFAULT_AGGREGATOR, AggregatorUrl, Token, call_aggregator, compact_table, console, say_secret
from ifed.messages.events import EventKind, NewWebhook

app = typer.Typer(help="Have events posted to an address, and see what became of them.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="Name of the webhook.")]


@app.command("add")
def add(
    name: Name,
    url: Annotated[str, typer.Argument(help="Where events are posted.")],
    token: Token,
    aggregator: AggregatorUrl = DEFAULT_AGGREGATOR,
    task: Annotated[str | None, typer.Option(help="Tell of this task alone.")] = None,
    event: Annotated[list[EventKind] | None, typer.Option(help="Tell of this kind alone; may be given again.")] = None,
) -> None:
    """Register a webhook, and print the secret that signs its deliveries. The secret cannot be shown again."""
    wanted = NewWebhook(name=name, url=url, task=task, events=event or None)
    made = call_aggregator(aggregator, token, lambda service: service.register_webhook(wanted))
    say_secret(f"{made.name} is registered. Its secret, shown this once:\n\n    {made.secret}\n")


@app.command("list")
def list_webhooks(token: Token, aggregator: AggregatorUrl = DEFAULT_AGGREGATOR) -> None:
    """List the webhooks and the number of their pending deliveries."""
    table = compact_table("name", "task", "events", "pending", "url")
    for webhook in call_aggregator(aggregator, token, lambda service: service.webhooks()):
        kinds = "all" if webhook.events is None else ", ".join(webhook.events)
        table.add_row(webhook.name, webhook.task or "all", kinds, str(webhook.pending), webhook.url)
    console.print(table)


@app.command("remove")
def remove(name: Name, token: Token, aggregator: AggregatorUrl = DEFAULT_AGGREGATOR) -> None:
    """Remove a webhook."""
    call_aggregator(aggregator, token, lambda service: service.remove_webhook(name))
    console.print(f"{name} is removed")


@app.command("deliveries")
def deliveries(name: Name, token: Token, aggregator: AggregatorUrl = DEFAULT_AGGREGATOR) -> None:
    """List the deliveries of events to a webhook."""
    table = compact_table("event", "what", "task", "state", "attempts", "status", "error")
    for delivery in call_aggregator(aggregator, token, lambda service: service.deliveries(name)):
        status = "–" if delivery.status is None else str(delivery.status)
        cells = (
            str(delivery.event.number),
            delivery.event.kind,
            delivery.event.task,
            delivery.state,
            str(delivery.attempts),
            status,
        )
        table.add_row(*cells, delivery.error or "")
    console.print(table)
