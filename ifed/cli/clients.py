"""`ifed client …`: enrol organisations and readers, list them, renew and revoke their tokens."""

from __future__ import annotations

from typing import Annotated

import typer

from ifed.access import ClientInfo, Enrolment
from ifed.cli.session import DEFAULT_AGGREGATOR, AggregatorUrl, Token, compact_table, console, run, say
from ifed.clients import AggregatorClient
from ifed.states import Role

app = typer.Typer(help="Enrol organisations and readers, renew and revoke their tokens.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="Name of the client: lower-case letters, digits, dots, dashes.")]


@app.command("enrol")
def enrol(
    name: Name,
    token: Token,
    aggregator: AggregatorUrl = DEFAULT_AGGREGATOR,
    role: Annotated[Role, typer.Option(help="A client contributes; a reader fetches adapters.")] = Role.CLIENT,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the token alone.")] = False,
) -> None:
    """Enrol a client or a reader and print its token, this once."""

    async def work() -> Enrolment:
        async with AggregatorClient(aggregator, token) as service:
            return await service.enrol(name, role)

    _show(run(work()), quiet=quiet)


@app.command("rotate")
def rotate(
    name: Name,
    token: Token,
    aggregator: AggregatorUrl = DEFAULT_AGGREGATOR,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the token alone.")] = False,
) -> None:
    """Give a client a new token; the old one ends at once."""

    async def work() -> Enrolment:
        async with AggregatorClient(aggregator, token) as service:
            return await service.rotate(name)

    _show(run(work()), quiet=quiet)


@app.command("revoke")
def revoke(name: Name, token: Token, aggregator: AggregatorUrl = DEFAULT_AGGREGATOR) -> None:
    """End a client's token for good."""

    async def work() -> None:
        async with AggregatorClient(aggregator, token) as service:
            await service.revoke(name)

    run(work())
    console.print(f"{name} is revoked")


@app.command("list")
def list_clients(token: Token, aggregator: AggregatorUrl = DEFAULT_AGGREGATOR) -> None:
    """List who is enrolled."""

    async def work() -> list[ClientInfo]:
        async with AggregatorClient(aggregator, token) as service:
            return await service.enrolled()

    table = compact_table("name", "role", "enrolled", "last seen", "revoked")
    for client in run(work()):
        seen, revoked = client.last_seen_at, client.revoked_at
        table.add_row(
            client.name,
            client.role,
            f"{client.enrolled_at:%Y-%m-%d %H:%M}",
            f"{seen:%Y-%m-%d %H:%M}" if seen else "never",
            f"{revoked:%Y-%m-%d %H:%M}" if revoked else "",
        )
    console.print(table)


def _show(enrolment: Enrolment, *, quiet: bool) -> None:
    if quiet:
        say(enrolment.token, verbatim=True)
        return
    say(f"{enrolment.name} is enrolled as {enrolment.role}. Its token, shown this once:\n\n    {enrolment.token}\n", verbatim=True)
