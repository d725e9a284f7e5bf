"""The `ifed` command: joins its sub-commands and turns a refusal into one line and an exit code."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer
from pydantic import ValidationError
from rich.text import Text

from ifed import __version__
from ifed.cli import audit, classify, clients, demo, events, export, models, tasks, webhooks
from ifed.cli.console import console, error_console
from ifed.errors import IFedError
from ifed.messages.validation import describe_errors
from ifed.server.logs import hush_imports

app = typer.Typer(
    name="ifed",
    help="Federated in-context learning: manage tasks, clients and rounds, classify, and see the whole of it in a demo.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(tasks.app, name="task")
app.add_typer(clients.app, name="client")
app.add_typer(models.app, name="model")
app.add_typer(webhooks.app, name="webhook")
app.command("events")(events.events)
app.command("audit")(audit.audit)
app.command("classify")(classify.classify)
app.command("export")(export.export)
app.command("demo")(demo.demo)
app.command("demo-texts")(demo.demo_texts)


@app.command()
def version() -> None:
    """Print the version."""
    console.print(__version__)


def _complain(name: str, words: str) -> NoReturn:
    error_console.print(Text.assemble((name, "bold red"), f" {words}"), soft_wrap=True)
    sys.exit(1)


def main() -> None:
    """Run the `ifed` command."""
    hush_imports()
    try:
        app()
    except IFedError as refusal:
        _complain(type(refusal).__name__, refusal.detail)
    except ValidationError as reason:
        _complain("BadArguments", describe_errors(reason.errors()))
    except (OSError, UnicodeError) as reason:
        _complain(type(reason).__name__, str(reason))
    except KeyboardInterrupt:
        sys.exit(130)
