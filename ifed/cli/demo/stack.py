"""The services as processes on free loopback ports: start, watch, stop. Meets them only by command line and HTTP."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from ifed.errors import IFedError

# Settings of the services that a user may have in the environment for a deployment; a demo must not touch that deployment.
FOREIGN = frozenset(
    [
        "DATABASE_URL",
        "REDIS_URL",
        "ADMIN_TOKEN_FILE",
        "CLIENT_TOKEN_FILE",
        "READER_TOKEN_FILE",
        "HOST",
        "PORT",
        "STATE_DIR",
        "MODEL",
        "LANES",
        "PREFIX_BYTES",
        "COMPILED",
        "INT8",
        "TASKS",
        "TEXT_COLUMN",
        "LABEL_COLUMN",
        "LABEL_MAP",
        "DEVICE",
        "DTYPE",
        "THREADS",
        "TOKEN_BUDGET",
        "STAY",
        "MIGRATE_ON_START",
        "LOG_LEVEL",
        "LOG_JSON",
        "WAIT_SECONDS",
        "REFRESH_WAIT",
    ]
)
GRACE_SECONDS = 10.0


class ServiceDied(IFedError):
    """A service ended by itself; the last lines of its log say why."""


@dataclass(slots=True)
class Service:
    """One running process, where it answers, and where its log is."""

    name: str
    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def code(self) -> int | None:
        return self.process.poll()

    def last_words(self, lines: int = 15) -> str:
        """The end of its log; lines too long for a terminal are cut."""
        return "\n".join(line[:400] for line in self.log.read_text(errors="replace").splitlines()[-lines:])


class Stack:
    """Every process of a demo. Leaving the block ends them all, the last started first."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._services: list[Service] = []

    def __enter__(self) -> Self:
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        for service in reversed(self._services):
            self._signal(service, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        for service in reversed(self._services):
            try:
                service.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._signal(service, signal.SIGKILL)
                service.process.wait()

    def start(self, name: str, module: str, settings: Mapping[str, str]) -> Service:
        """Start `python -m module` with `settings` in its environment, on a free port of its own."""
        port = _free_port()
        environment = {key: value for key, value in os.environ.items() if key not in FOREIGN}
        environment |= {"HOST": "127.0.0.1", "PORT": str(port), "PYTHONUNBUFFERED": "1"} | dict(settings)
        log = self._logs / f"{name}.log"
        with log.open("wb") as output:
            # A session of its own: Ctrl-C reaches this process alone, which then ends the others in order.
            process = subprocess.Popen(  # noqa: S603  # our own modules, with this interpreter
                [sys.executable, "-m", module],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        service = Service(name, f"http://127.0.0.1:{port}", process, log)
        self._services.append(service)
        return service

    def check(self) -> None:
        """Notice a service that ended with an error.

        Raises:
            ServiceDied: it gives the service's exit code and the end of its log.
        """
        for service in self._services:
            if service.code not in (None, 0):
                raise ServiceDied(
                    f"{service.name} ended with code {service.code}; the end of {service.log}:\n{service.last_words()}"
                )

    def forget(self, service: Service) -> None:
        """No longer watch a service that was ended on purpose."""
        self._services.remove(service)

    def wait_ready(self, service: Service, *, seconds: float) -> None:
        """Wait until the service says it can work.

        Raises:
            ServiceDied: it ended, or took longer than `seconds`.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.check()
            try:
                if httpx.get(f"{service.url}/readyz", timeout=5, trust_env=False).is_success:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        raise ServiceDied(f"{service.name} was not ready after {seconds:.0f} s; the end of {service.log}:\n{service.last_words()}")

    @staticmethod
    def _signal(service: Service, number: signal.Signals) -> None:
        if service.code is None:
            service.process.send_signal(number)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
