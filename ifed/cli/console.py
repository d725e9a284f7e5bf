"""The console and the options that all commands share, and how values are written."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from enum import IntEnum
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel
from rich.console import Console, RenderableType

from ifed.clients import AggregatorClient
from ifed.clients.transport import is_service_url
from ifed.errors import BadArguments
from ifed.private_files import FILE_MODE

Result = TypeVar("Result")
console = Console()
error_console = Console(stderr=True)
AggregatorUrl = Annotated[
    str, typer.Option("--aggregator", envvar="IFED_AGGREGATOR_URL", help="Where the aggregator answers.", show_envvar=True)
]
InferenceUrl = Annotated[
    str, typer.Option("--inference", envvar="IFED_INFERENCE_URL", help="Where the inference service answers.", show_envvar=True)
]
Token = Annotated[
    str, typer.Option("--token", envvar="IFED_TOKEN", help="Your bearer token.", show_envvar=True, show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON with every field, one object per line.")]
DEFAULT_AGGREGATOR = "http://127.0.0.1:8080"
DEFAULT_INFERENCE = "http://127.0.0.1:8081"


class ExitCode(IntEnum):
    """The exit code of `ifed`."""

    DONE = 0
    REFUSED = 1
    BAD_ARGUMENTS = 2
    INTERRUPTED = 130


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run the coroutine of a command."""
    return asyncio.run(work)


def call_aggregator(url: str, token: str, call: Callable[[AggregatorClient], Awaitable[Result]]) -> Result:
    """Run `call` with a client of the aggregator, and return its result.

    Raises:
        BadArguments: the address or the token cannot be used.
    """
    check_address(url, "--aggregator", DEFAULT_AGGREGATOR)
    check_token(token)

    async def connected() -> Result:
        async with AggregatorClient(url, token) as client:
            return await call(client)

    return run(connected())


def check_address(url: str, option: str, example: str) -> None:
    """Check that an option is the URL of a service.

    Raises:
        BadArguments: it is not.
    """
    if not is_service_url(url):
        shown = "the address" if "@" in url else repr(url)  # before an @ stands a password
        raise BadArguments(f"{option}: {shown} is no URL of a service; it begins with http:// or https://, as in {example}")


def check_token(token: str | None) -> None:
    """Check that a token which was given is not empty.

    Raises:
        BadArguments: it is, as by `IFED_TOKEN=$(cat FILE)` where FILE does not exist.
    """
    if token is not None and not token.strip():
        raise BadArguments("--token is empty; give a token, or name a file that holds one in IFED_TOKEN_FILE")


def say(words: str, *, verbatim: bool = False) -> None:
    """Print text without markup; on a terminal, break long lines between words unless the text is `verbatim`."""
    console.print(words, highlight=False, markup=False, emoji=False, soft_wrap=verbatim or not console.is_terminal)


def say_secret(words: str) -> None:
    """Print text with a secret in it; a file that standard output goes to is first closed to everyone but its owner."""
    with suppress(OSError):  # no file descriptor, or another user's file
        descriptor = sys.stdout.fileno()
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISREG(mode) and mode & stat.S_IRWXO:
            os.fchmod(descriptor, FILE_MODE)
    say(words, verbatim=True)


def show(table: RenderableType) -> None:
    """Print a table. A `FittedTable` is wider than the console only where that is no terminal."""
    console.print(table, crop=False)


def print_json(*messages: BaseModel) -> None:
    """Print each message as one line of JSON."""
    for message in messages:
        say(message.model_dump_json(), verbatim=True)


def percent(share: float | None) -> str:
    """Format a share from 0 to 1 as a percentage, None as a dash."""
    return "–" if share is None else f"{100 * share:.1f} %"


def size(count: int | None) -> str:
    """Format a number of bytes, in powers of 1000."""
    if count is None:
        return "–"
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:.1f} KB" if count < 1_000_000 else f"{count / 1_000_000:.1f} MB"
