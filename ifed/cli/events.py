"""`ifed events`: follow what happens to tasks and rounds."""

from __future__ import annotations

from typing import Annotated

import typer

from ifed.cli.console import DEFAULT_AGGREGATOR, AggregatorUrl, Token, call_aggregator, say
from ifed.clients import AggregatorClient
from ifed.messages.events import Event


def events(
    token: Token,
    aggregator: AggregatorUrl = DEFAULT_AGGREGATOR,
    task: Annotated[str | None, typer.Option(help="Show only this task.")] = None,
    after: Annotated[int | None, typer.Option(help="Begin after the event of this number; 0 shows all events.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many events.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """Follow what happens to tasks and rounds, until Ctrl-C."""

    async def follow(service: AggregatorClient) -> None:
        shown = 0
        async for event in service.events(after=after, task=task):
            say(event.model_dump_json(exclude_none=True) if as_json else in_words(event), verbatim=True)
            shown += 1
            if shown == count:
                return

    call_aggregator(aggregator, token, follow)


def in_words(event: Event) -> str:
    """Format an event as one line: number, time, kind, task, round and reason."""
    round_ = "" if event.round is None else f" round {event.round} ({event.round_kind})"
    version = "" if event.version is None else f" version {event.version}"
    reason = "" if event.reason is None else f": {event.reason}"
    return f"{event.number:>6}  {event.at:%Y-%m-%d %H:%M:%S}  {event.kind:<16}  {event.task}{round_}{version}{reason}"
