"""Read the settings of a process, or end it with a sentence for its operator and an exit code."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import NoReturn, TypeVar

import structlog
from pydantic import BaseModel, ValidationError

from ifed.errors import IFedError
from ifed.messages.validation import field_problems
from ifed.private_files import others_can_read

log = structlog.get_logger(__name__)

BACKLOG = 2048  # connections that may wait, as uvicorn has it
Chosen = TypeVar("Chosen", bound=BaseModel)


def settings_or_exit(kind: Callable[[], Chosen], *, service: str, secrets: Callable[[Chosen], object] = lambda _: None) -> Chosen:
    """Read and check the settings; exit with code 2 and an explanation if something is missing or wrong.

    Args:
        kind: the settings class.
        service: the name of the process in the explanation.
        secrets: reads what settings only name, such as the file of a token, so that a missing file is reported at the start.
    """
    try:
        settings = kind()
        secrets(settings)
    except ValidationError as reason:
        problems = "\n".join(
            f"  {field.upper() or 'SETTINGS'}: {problem.removeprefix('Value error, ')}"
            for field, problem in field_problems(reason.errors())
        )
        _end(f"{service}: these settings, read from the environment, are missing or wrong:\n{problems}")
    except (ValueError, IFedError) as reason:
        _end(f"{service}: a setting, or the file it names, is of no use: {reason}")
    except OSError as reason:
        _end(f"{service}: a file or folder that a setting names cannot be read: {reason}")
    return settings


def listen_or_exit(host: str, port: int, *, service: str) -> socket.socket:
    """Return a socket that listens at an address; exit with code 2 and an explanation if it cannot.

    A process calls this before slow work, so that an address in use is reported at once.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=BACKLOG)
    except OSError as reason:
        words = os.strerror(reason.errno) if reason.errno is not None and reason.errno > 0 else reason.strerror
        _end(f"{service}: cannot listen on {host} port {port} ({words}); set HOST and PORT to an address that is free")


@dataclass(frozen=True, slots=True)
class StartFailure:
    """Why a service could not start, in words for its operator, and the exit code that says so."""

    words: str
    code: int


def run_or_exit(run: Callable[[], None], failure: Callable[[], StartFailure | None], *, service: str) -> None:
    """Run a server until it is told to stop; if it could not start, exit with the reason as the last line.

    Args:
        run: runs the server; returns, or raises SystemExit, also when it could not start.
        failure: returns why it could not start; None while it has not failed.
        service: the name of the process in the explanation.
    """
    # The server logs the failure of the application in its own words, with a traceback and several lines.
    logging.getLogger("uvicorn.error").addFilter(lambda _record: failure() is None)
    try:
        run()
    except SystemExit:
        if failure() is None:
            raise
    if (reason := failure()) is not None:
        _end(f"{service}: {' '.join(reason.words.split())}", code=reason.code)


def warn_of_readable_files(settings: BaseModel, *names: str) -> None:
    """Log a warning for each of these settings whose file holds a secret that other users of this machine can read.

    Args:
        settings: of the process.
        names: of the settings; one that is not set is skipped.
    """
    for name in names:
        path: Path | None = getattr(settings, name)
        if path is not None and others_can_read(path):
            log.warning("others can read a secret file", setting=name.upper(), file=str(path), hint=f"chmod 600 {path}")


def check_networks(networks: str) -> str:
    """Return a comma-separated list of addresses and networks unchanged; raise ValueError if one of them is neither."""
    for network in filter(None, (part.strip() for part in networks.split(","))):
        ip_network(network)
    return networks


def _end(words: str, *, code: int = 2) -> NoReturn:
    sys.stderr.write(f"{words}\n")
    sys.exit(code)
