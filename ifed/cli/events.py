"""`ifed events`: follow what happens to tasks and rounds."""

from __future__ import annotations

from typing import Annotated

import typer

from ifed.cli.console import DEFAULT_AGGREGATOR, AggregatorUrl, Token, run, say
from ifed.clients import AggregatorClient
from ifed.messages.events import Event


def events(
    token: Token,
    aggregator: AggregatorUrl = DEFAULT_AGGREGATOR,
    task: Annotated[str | None, typer.Option(help="Tell of this task alone.")] = None,
    after: Annotated[
        int | None, typer.Option(help="Begin after the event of this number; 0 tells everything from the start.")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many events.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Follow what happens to tasks and rounds, until Ctrl-C."""

    async def work() -> None:
        told = 0
        async with AggregatorClient(aggregator, token) as service:
            async for event in service.events(after=after, task=task):
                say(event.model_dump_json(exclude_none=True) if as_json else in_words(event), verbatim=True)
                told += 1
                if told == count:
                    return

    run(work())


def in_words(event: Event) -> str:
    """Format an event as one line: number, time, kind, task, round and reason."""
    round_ = "" if event.round is None else f" round {event.round} ({event.round_kind})"
    version = "" if event.version is None else f" version {event.version}"
    reason = "" if event.reason is None else f": {event.reason}"
    return f"{event.number:>6}  {event.at:%Y-%m-%d %H:%M:%S}  {event.kind:<16}  {event.task}{round_}{version}{reason}"
