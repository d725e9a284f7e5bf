"""A process with wrong settings names them in a sentence and shows no secret."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

MODULES = ["services.aggregator.app", "services.client_agent.app", "services.inference.app"]


def run_module(module: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-m", module], env=inherited | environment, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("module", MODULES)
def test_missing_settings_are_named_in_a_sentence(module: str) -> None:
    done = run_module(module)
    assert done.returncode == 2
    assert "missing or wrong" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_setting_shows_no_secret_beside_it() -> None:
    done = run_module("services.aggregator.app", ADMIN_TOKEN="a-secret-that-is-long-enough-to-be-taken", PORT="none")
    assert done.returncode == 2
    assert "PORT" in done.stderr
    assert "a-secret" not in done.stderr


def test_a_missing_token_file_is_reported_at_the_start(tmp_path: Path) -> None:
    settings = {
        "AGGREGATOR_URL": "http://127.0.0.1:1",
        "TASK": "a",
        "DATA_FILE": "a.csv",
        "CLIENT_TOKEN_FILE": str(tmp_path / "none"),
        "MODEL": "tiny",
    }
    done = run_module("services.client_agent.app", **settings)
    assert (done.returncode, "cannot be read" in done.stderr) == (2, True)


AGENT = {"AGGREGATOR_URL": "http://127.0.0.1:1", "CLIENT_TOKEN": "token", "TASK": "a", "MODEL": "tiny"}


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.splitlines()[-1]


def test_an_agent_names_an_address_in_use_at_once_and_exits_with_code_2(tmp_path: Path) -> None:
    data_file = tmp_path / "a.csv"
    data_file.write_text("text,label\ngood,yes\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run_module("services.client_agent.app", **AGENT, DATA_FILE=str(data_file), PORT=port)
    assert done.returncode == 2
    assert last_line(done) == (
        f"the client agent: cannot listen on 127.0.0.1 port {port} (Address already in use); set HOST and PORT to an address that is free"
    )


SERVICES = {
    "the aggregator": ("services.aggregator.app", {"ADMIN_TOKEN": "a-token-of-more-than-16-characters"}),
    "the inference service": ("services.inference.app", {"MODEL": "tiny", "OPEN_ACCESS": "true", "ADAPTER_FOLDER": "."}),
}


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_names_an_address_in_use_as_its_last_line_and_exits_with_code_2(service: str, tmp_path: Path) -> None:
    module, settings = SERVICES[service]
    settings = settings | {"DATABASE_URL": f"sqlite:///{tmp_path / 'ifed.sqlite3'}"}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run_module(module, **settings, PORT=port)
    assert (done.returncode, last_line(done).startswith(f"{service}: cannot listen on 127.0.0.1 port {port}")) == (2, True)
    assert not (tmp_path / "ifed.sqlite3").exists(), "the address comes before any other work"


AGGREGATOR = SERVICES["the aggregator"][1] | {"PORT": "0"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"DATABASE_URL": "sqlite:////nowhere/ifed.sqlite3"},
            "the database file /nowhere/ifed.sqlite3 cannot be used: unable to open",
        ),
        (
            {"DATABASE_URL": "postgresql://u@127.0.0.1:1/d", "MIGRATE_ON_START": "true"},
            "the database cannot be reached ([Errno 111]",
        ),
        ({"ADMIN_TOKEN_FILE": "/nowhere/token"}, "a file or folder that a setting names cannot be read: [Errno 2]"),
        ({"TLS_CERTIFICATE_FILE": "/nowhere/tls.crt", "TLS_KEY_FILE": "/nowhere/tls.key"}, "a file or folder that a setting names"),
    ],
)
def test_an_aggregator_that_cannot_start_says_why_in_its_last_line_and_exits_with_code_2(
    settings: dict[str, str], words: str
) -> None:
    done = run_module("services.aggregator.app", **AGGREGATOR | settings)
    assert (done.returncode, last_line(done).startswith(f"the aggregator: {words}")) == (2, True), done.stderr
    assert "Traceback" not in done.stderr
    assert "Application startup failed" not in done.stderr


def test_a_migration_names_a_database_that_it_cannot_reach() -> None:
    done = run_module("services.aggregator.migrate", **AGGREGATOR, DATABASE_URL="postgresql://u@127.0.0.1:1/d?sslmode=require")
    assert (done.returncode, last_line(done).startswith("the migration: the database cannot be reached")) == (2, True)
    assert "Traceback" not in done.stderr


def test_an_agent_names_a_data_file_without_its_column_at_once_and_exits_with_code_3(tmp_path: Path) -> None:
    data_file = tmp_path / "a.csv"
    data_file.write_text("JANE DOE,yes\n")
    done = run_module("services.client_agent.app", **AGENT, DATA_FILE=str(data_file))
    assert done.returncode == 3
    assert last_line(done).startswith(
        "the client agent: BadData: a.csv, line 1: no column 'text' in the heading, which has 2 columns"
    )
    assert "JANE" not in done.stderr
