"""`ifed task ledger`, `contexts` and `withdraw`: what a task is made of, the proof of it, and what leaves it."""

from __future__ import annotations

from typing import Annotated

import typer

from ifed.cli.console import DEFAULT_AGGREGATOR, AggregatorUrl, Token, compact_table, console, say, size
from ifed.cli.tasks import Name, ask
from ifed.cli.tasks import app as app  # with the commands of this file
from ifed.clients import AggregatorClient
from ifed.errors import Conflict
from ifed.messages.enums import RoundState
from ifed.messages.rounds import Replay


@app.command("ledger")
def ledger(
    name: Name,
    token: Token,
    aggregator: AggregatorUrl = DEFAULT_AGGREGATOR,
    verify: Annotated[bool, typer.Option("--verify", help="Sum every closed round up again and compare, byte for byte.")] = False,
) -> None:
    """List every contribution, or prove the aggregates and every version of the context vector from them."""
    _verify(name, aggregator, token) if verify else _list_ledger(name, aggregator, token)


@app.command("contexts")
def contexts(name: Name, token: Token, aggregator: AggregatorUrl = DEFAULT_AGGREGATOR) -> None:
    """List the versions of a task's context vector: additions and withdrawals make new ones."""
    table = compact_table("version", "made", "demonstrations", "changes", "sha256")
    for one in ask(aggregator, token, lambda service: service.contexts(name)):
        table.add_row(str(one.version), f"{one.created_at:%m-%d %H:%M:%S}", str(one.examples), str(one.changes), one.digest[:12])
    console.print(table)


@app.command("withdraw")
def withdraw(
    name: Name,
    token: Token,
    aggregator: AggregatorUrl = DEFAULT_AGGREGATOR,
    client: Annotated[str | None, typer.Option(help="The client to withdraw, with an admin's token; else the token's own.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Take a client out of a task for good, and its demonstrations out of the context vector."""
    yes or typer.confirm(f"Take {client or 'this client'} out of {name} for good?", abort=True)
    gone = ask(aggregator, token, lambda service: service.withdraw(name, client))
    say(f"{gone.client} takes part in {name} no more, since {gone.withdrawn_at:%Y-%m-%d %H:%M:%S} UTC")


def _list_ledger(name: str, aggregator: str, token: str) -> None:
    table = compact_table("#", "kind", "round", "client", "examples", "sent", "received", "sha256")
    for entry in ask(aggregator, token, lambda service: service.ledger(name)):
        state = "withdrawn" if entry.withdrawn else "added" if entry.change else entry.state
        said = (str(entry.round), entry.kind, state, entry.client, str(entry.examples), size(entry.bytes))
        table.add_row(*said, f"{entry.received_at:%m-%d %H:%M:%S}", entry.digest[:12])
    console.print(table)


def _verify(name: str, aggregator: str, token: str) -> None:
    async def work(service: AggregatorClient) -> list[Replay]:
        closed = [round_.number for round_ in await service.rounds(name) if round_.state is RoundState.CLOSED]
        later = [one.version for one in await service.contexts(name) if one.version > 1]  # the first is its round's
        rounds = [await service.replay(name, number) for number in closed]
        return rounds + [await service.replay_context(name, version) for version in later]

    found = ask(aggregator, token, work)
    table = compact_table("#", "kind", "contributions", "version", "kept", "replayed", "proven")
    for one in found:
        said = (str(one.round), one.kind, str(one.contributions), "–" if one.version is None else str(one.version))
        table.add_row(*said, (one.stored or "–")[:12], (one.replayed or "–")[:12], "yes" if one.proven else "NO")
    console.print(table)
    if failed := [str(one.round) for one in found if not one.proven]:
        raise Conflict(f"the ledger of {name} does not give what is kept in round {', '.join(failed)}")
