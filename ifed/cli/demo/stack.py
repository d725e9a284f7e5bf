"""The services as processes on free loopback ports: start, watch, stop."""

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

# What a service needs of the demo's own environment. Everything else stays out, above all the settings of a deployment
# that a user has exported: the demo must neither touch that deployment nor stop because of it.
INHERITED = frozenset(
    [
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT"),  # to start at all
        *("LANG", "LANGUAGE", "TZ", "TERM", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH"),
        *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"),  # where models and caches are
        *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    ]
)
# Libraries that run the model: where they keep models, which devices and how many threads they use.
INHERITED_PREFIXES = (
    "LC_",
    "HF_",
    "TRANSFORMERS_",
    "TORCH_",
    "PYTORCH_",
    "CUDA_",
    "NVIDIA_",
    "OMP_",
    "KMP_",
    "MKL_",
    "OPENBLAS_",
    "ONEDNN_",
    "DNNL_",
)
GRACE_SECONDS = 10.0


class ServiceDied(IFedError):
    """A service ended unexpectedly; the last lines of its log say why."""


@dataclass(slots=True)
class ServiceProcess:
    """One running process, where it answers, and where its log is."""

    name: str
    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def code(self) -> int | None:
        return self.process.poll()

    def last_words(self, lines: int = 15) -> str:
        """Return the end of its log; lines too long for a terminal are cut."""
        return "\n".join(line[:400] for line in self.log.read_text(errors="replace").splitlines()[-lines:])


class Stack:
    """Every process of a demo. Leaving the block stops them all, the last started first."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._services: list[ServiceProcess] = []

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

    def start(self, name: str, module: str, settings: Mapping[str, str]) -> ServiceProcess:
        """Start `python -m module` on a free port of its own, with `settings` and what it needs of our environment."""
        port = _free_port()
        environment = {name: value for name, value in os.environ.items() if _is_inherited(name)}
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
        service = ServiceProcess(name, f"http://127.0.0.1:{port}", process, log)
        self._services.append(service)
        return service

    def check(self) -> None:
        """Check that no service has ended with an error.

        Raises:
            ServiceDied: it gives the service's exit code and the end of its log.
        """
        for service in self._services:
            if service.code not in (None, 0):
                raise ServiceDied(
                    f"{service.name} ended with code {service.code}; the end of {service.log}:\n{service.last_words()}"
                )

    def forget(self, service: ServiceProcess) -> None:
        """Stop watching a service that was stopped on purpose."""
        self._services.remove(service)

    def wait_ready(self, service: ServiceProcess, *, seconds: float) -> None:
        """Wait until the service is ready.

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
    def _signal(service: ServiceProcess, number: signal.Signals) -> None:
        if service.code is None:
            service.process.send_signal(number)


def _is_inherited(name: str) -> bool:
    return name in INHERITED or name.startswith(INHERITED_PREFIXES)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
