"""The `ifed` command: joins its sub-commands and turns a refusal into one line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.text import Text

from ifed import __version__
from ifed.cli import audit, classify, clients, demo, events, export, models, tasks, webhooks
from ifed.cli.console import ExitCode, console, error_console
from ifed.cli.files import read_token, unusable
from ifed.errors import BadArguments, IFedError
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


@app.callback()
def common(
    context: typer.Context,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file", envvar="IFED_TOKEN_FILE", help="A file with the token of every command that has none.", show_envvar=True
        ),
    ] = None,
) -> None:
    """Set what every command takes."""
    if token_file is not None:
        context.default_map = _token_defaults(context.command, partial(read_token, token_file))


def _token_defaults(command: Any, token: Callable[[], str]) -> dict[str, Any]:
    """Return the default of `--token` for each command below `command`; the file is read by the command that needs it."""
    commands = getattr(command, "commands", None)
    if commands is None:
        return {"token": token}
    return {name: _token_defaults(inner, token) for name, inner in commands.items()}


@app.command()
def version() -> None:
    """Print the version."""
    console.print(__version__)


def _complain(name: str, words: str, code: ExitCode = ExitCode.REFUSED) -> NoReturn:
    error_console.print(Text.assemble((name, "bold red"), f" {words}"), soft_wrap=True)
    sys.exit(code)


def _complain_of_arguments(words: str) -> NoReturn:
    _complain(BadArguments.__name__, words, ExitCode.BAD_ARGUMENTS)


def main() -> None:
    """Run the `ifed` command."""
    hush_imports()
    try:
        app()
    except BadArguments as refusal:
        _complain_of_arguments(refusal.detail)
    except IFedError as refusal:
        _complain(type(refusal).__name__, refusal.detail)
    except ValidationError as reason:
        _complain_of_arguments(describe_errors(reason.errors()))
    except UnicodeError as reason:
        _complain_of_arguments(str(reason))
    except OSError as reason:
        if reason.filename is not None:
            _complain_of_arguments(unusable(reason.filename, reason).detail)
        _complain(type(reason).__name__, str(reason))
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
