"""Aggregators in separate processes, for tests that kill them."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from testing.factories import ADMIN_TOKEN
from testing.servers import free_port

START_SECONDS = 60.0
AGGREGATOR = ("-m", "services.aggregator.app")


class Process:
    """An aggregator on a free port, by default `python -m services.aggregator.app` on a SQLite file in `folder`."""

    def __init__(self, folder: Path, *, command: Sequence[str] = AGGREGATOR, **settings: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.command = command
        self.trust: ssl.SSLContext | bool = True
        self._log = folder / f"log-{self.port}"
        self._settings = environment(folder) | {"PORT": str(self.port)} | settings
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([sys.executable, *self.command], env=self._settings, stdout=log, stderr=log)
        end = time.monotonic() + START_SECONDS
        while not self._ready():
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < end, self.log()
            time.sleep(0.1)

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", verify=self.trust).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self, how: signal.Signals) -> int:
        assert self._process is not None
        self._process.send_signal(how)
        return self._process.wait(20)

    def ended(self) -> int:
        """Wait until the process ends by itself, and return its exit code."""
        assert self._process is not None
        return self._process.wait(20)

    def log(self) -> str:
        return self._log.read_text()

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.stop(signal.SIGKILL)


def environment(folder: Path) -> dict[str, str]:
    """Return the settings of an aggregator, with the variables of this process that Python needs."""
    inherited = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME") if name in os.environ}
    return inherited | {"DATABASE_URL": f"sqlite:///{folder / 'ifed.sqlite3'}", "ADMIN_TOKEN": ADMIN_TOKEN, "CLAIM_SECONDS": "1"}
