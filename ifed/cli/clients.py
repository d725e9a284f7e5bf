"""`ifed client …`: enrol organisations and readers, list them, and rotate or revoke their tokens."""

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
from ifed.cli.files import private_output, read_file
from ifed.cli.tables import Column, FittedTable
from ifed.clients import AggregatorClient
from ifed.errors import AlreadyExists, Unauthenticated
from ifed.messages.clients import ClientInfo, Enrolment
from ifed.messages.enums import Role

app = typer.Typer(help="Enrol organisations and readers, rotate and revoke their tokens.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="Name of the client: lower-case letters, digits, dots, dashes.")]


@app.command("enrol")
def enrol(
    name: Name,
    token: Token,
    aggregator: AggregatorUrl = DEFAULT_AGGREGATOR,
    role: Annotated[Role, typer.Option(help="A client contributes; a reader fetches adapters.")] = Role.CLIENT,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the token.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", "--file", help="Write the token to this file, for its owner alone; a valid token that is there stays."
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Give a client that is enrolled already a new token if the file holds no valid one.")
    ] = False,
) -> None:
    """Enrol a client or a reader, and print its token, or write it to a file. The token cannot be shown again."""
    existing = read_file(output).strip() if output is not None and output.is_file() else None

    async def enrol_or_rotate(service: AggregatorClient) -> Enrolment | None:
        if existing is not None and await _is_valid(service, existing, name):
            return None
        try:
            return await service.enrol(name, role)
        except AlreadyExists:
            if not replace:
                raise
            return await service.rotate(name)

    if output is None:
        enrolment = call_aggregator(aggregator, token, enrol_or_rotate)
        assert enrolment is not None, "without a file there is no token that could stay"
        _show(enrolment, quiet=quiet)
        return
    with private_output(output) as write:
        if (enrolment := call_aggregator(aggregator, token, enrol_or_rotate)) is not None:
            write(enrolment.token)
    say(f"the token of {name} is in {output}")


async def _is_valid(service: AggregatorClient, token: str, name: str) -> bool:
    """Return whether the aggregator knows `token` as that of `name`."""
    try:
        return (await service.whose(token)).name == name
    except Unauthenticated:
        return False


@app.command("rotate")
def rotate(
    name: Name,
    token: Token,
    aggregator: AggregatorUrl = DEFAULT_AGGREGATOR,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the token.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the token to this file, for its owner alone.")
    ] = None,
) -> None:
    """Give a client or reader a new token and print it, or write it to a file; the old token stops working at once."""
    if output is None:
        _show(call_aggregator(aggregator, token, lambda service: service.rotate(name)), quiet=quiet)
        return
    with private_output(output) as write:
        write(call_aggregator(aggregator, token, lambda service: service.rotate(name)).token)
    say(f"the token of {name} is in {output}")


@app.command("revoke")
def revoke(name: Name, token: Token, aggregator: AggregatorUrl = DEFAULT_AGGREGATOR) -> None:
    """Revoke the token of a client or reader permanently."""
    call_aggregator(aggregator, token, lambda service: service.revoke(name))
    say(f"{name} is revoked")


@app.command("list")
def list_clients(token: Token, aggregator: AggregatorUrl = DEFAULT_AGGREGATOR, as_json: AsJson = False) -> None:
    """List the enrolled clients and readers."""
    clients = call_aggregator(aggregator, token, lambda service: service.enrolled())
    print_json(*clients) if as_json else show(clients_table(clients))


def clients_table(clients: Sequence[ClientInfo]) -> FittedTable:
    """Return a table of enrolled parties."""
    table = FittedTable(Column("name", wraps=True), "role", Column("enrolled", optional=1), "last seen", "revoked")
    for client in clients:
        seen, revoked = client.last_seen_at, client.revoked_at
        table.add_row(
            client.name,
            client.role,
            f"{client.enrolled_at:%Y-%m-%d %H:%M}",
            f"{seen:%Y-%m-%d %H:%M}" if seen else "never",
            f"{revoked:%Y-%m-%d %H:%M}" if revoked else "",
        )
    return table


def _show(enrolment: Enrolment, *, quiet: bool) -> None:
    if quiet:
        say_secret(enrolment.token)
        return
    say_secret(f"{enrolment.name} is enrolled as {enrolment.role}. Its token, shown this once:\n\n    {enrolment.token}\n")
