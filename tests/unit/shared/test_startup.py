"""A process whose settings are wrong says which, in words, and shows no secret."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODULES = ["services.aggregator.app", "services.client_agent.app", "services.inference.app"]


def started(module: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-m", module], env=kept | environment, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("module", MODULES)
def test_missing_settings_are_named_in_words(module: str) -> None:
    done = started(module)
    assert done.returncode == 2
    assert "missing or wrong" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_setting_shows_no_secret_beside_it() -> None:
    done = started("services.aggregator.app", ADMIN_TOKEN="a-secret-that-is-long-enough-to-be-taken", PORT="none")
    assert done.returncode == 2
    assert "PORT" in done.stderr
    assert "a-secret" not in done.stderr


def test_a_token_s_file_that_is_missing_is_told_at_the_start(tmp_path: Path) -> None:
    settings = {
        "AGGREGATOR_URL": "http://127.0.0.1:1",
        "TASK": "a",
        "DATA_FILE": "a.csv",
        "CLIENT_TOKEN_FILE": str(tmp_path / "none"),
    }
    done = started("services.client_agent.app", **settings)
    assert (done.returncode, "cannot be read" in done.stderr) == (2, True)
