"""`ifed client …`: enrol organisations and readers, list them, and rotate or revoke their tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ifed.cli.console import DEFAULT_AGGREGATOR, AggregatorUrl, Token, compact_table, console, run, say
from ifed.clients import AggregatorClient
from ifed.errors import AlreadyExists, Unauthenticated
from ifed.messages.clients import ClientInfo, Enrolment
from ifed.messages.enums import Role

app = typer.Typer(help="Enrol organisations and readers, renew and revoke their tokens.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="Name of the client: lower-case letters, digits, dots, dashes.")]


@app.command("enrol")
def enrol(
    name: Name,
    token: Token,
    aggregator: AggregatorUrl = DEFAULT_AGGREGATOR,
    role: Annotated[Role, typer.Option(help="A client contributes; a reader fetches adapters.")] = Role.CLIENT,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the token alone.")] = False,
    file: Annotated[Path | None, typer.Option(help="Put the token there; one that is there and holds is left as it is.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Give a party that is enrolled a new token when the file has none that holds.")
    ] = False,
) -> None:
    """Enrol a client or a reader, and print its token, or write it to a file. The token cannot be shown again."""

    kept = file.read_text().strip() if file is not None and file.is_file() else None

    async def work() -> Enrolment | None:
        async with AggregatorClient(aggregator, token) as service:
            if kept is not None and await _holds(service, kept, name):
                return None
            try:
                return await service.enrol(name, role)
            except AlreadyExists:
                if not replace:
                    raise
                return await service.rotate(name)

    enrolment = run(work())
    if file is None and enrolment is not None:
        _show(enrolment, quiet=quiet)
        return
    if file is not None and enrolment is not None:
        _keep(file, enrolment.token)
    say(f"the token of {name} is in {file}")


async def _holds(service: AggregatorClient, token: str, name: str) -> bool:
    """Return whether the aggregator knows `token` as that of `name`."""
    try:
        return (await service.whose(token)).name == name
    except Unauthenticated:
        return False


def _keep(file: Path, token: str) -> None:
    """Write a token atomically to a file that only its owner can read."""
    part = file.with_name(f".{file.name}.part")
    part.touch(mode=0o600)
    part.chmod(0o600)
    part.write_text(f"{token}\n")
    part.replace(file)


@app.command("rotate")
def rotate(
    name: Name,
    token: Token,
    aggregator: AggregatorUrl = DEFAULT_AGGREGATOR,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the token alone.")] = False,
) -> None:
    """Give a client or reader a new token and print it; the old token stops working at once."""

    async def work() -> Enrolment:
        async with AggregatorClient(aggregator, token) as service:
            return await service.rotate(name)

    _show(run(work()), quiet=quiet)


@app.command("revoke")
def revoke(name: Name, token: Token, aggregator: AggregatorUrl = DEFAULT_AGGREGATOR) -> None:
    """Revoke the token of a client or reader permanently."""

    async def work() -> None:
        async with AggregatorClient(aggregator, token) as service:
            await service.revoke(name)

    run(work())
    console.print(f"{name} is revoked")


@app.command("list")
def list_clients(token: Token, aggregator: AggregatorUrl = DEFAULT_AGGREGATOR) -> None:
    """List the enrolled clients and readers."""

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
