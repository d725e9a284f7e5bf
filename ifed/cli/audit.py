"""`ifed audit`: list what admins requested."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from ifed.cli.console import DEFAULT_AGGREGATOR, AggregatorUrl, AsJson, Token, call_aggregator, print_json, show
from ifed.cli.tables import Column, FittedTable
from ifed.messages.clients import AuditLine


def audit(
    token: Token,
    aggregator: AggregatorUrl = DEFAULT_AGGREGATOR,
    after: Annotated[int, typer.Option(min=0, help="Begin after the line of this number.")] = 0,
    as_json: AsJson = False,
) -> None:
    """List what admins requested, oldest first; each line was written before the request was carried out."""
    lines = call_aggregator(aggregator, token, lambda service: service.audit(after=after))
    print_json(*lines) if as_json else show(audit_table(lines))


def audit_table(lines: Sequence[AuditLine]) -> FittedTable:
    """Return a table of audit lines."""
    table = FittedTable(
        "#",
        "at",
        Column("actor", wraps=True),
        Column("action", optional=1, wraps=True, least=20),
        Column("target", wraps=True),
        Column("request id", optional=2),
    )
    for line in lines:
        table.add_row(str(line.number), f"{line.at:%Y-%m-%d %H:%M:%S}", line.actor, line.action, line.target, line.request_id or "")
    return table
