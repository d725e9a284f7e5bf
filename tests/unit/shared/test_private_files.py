"""What holds secrets or private data is its owner's alone, and a start warns of what is not."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel
from structlog.testing import capture_logs

from ifed.cli.console import say_secret
from ifed.private_files import make_private_file, make_private_folder
from ifed.server.startup import warn_of_readable_files


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can enter, unlike those that pytest makes."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_each_folder_that_is_made_is_closed_and_an_existing_one_above_keeps_its_mode(tmp_path: Path) -> None:
    above = tmp_path / "above"
    above.mkdir(mode=0o755)
    make_private_folder(above / "agent" / "sentiment--me")
    assert [mode(path) for path in (above, above / "agent", above / "agent" / "sentiment--me")] == [0o755, 0o700, 0o700]


def test_a_file_that_others_can_read_is_closed_and_a_mode_for_a_group_stays(tmp_path: Path) -> None:
    new, readable, grouped = tmp_path / "new", tmp_path / "readable", tmp_path / "grouped"
    readable.write_text("kept")
    grouped.touch()
    grouped.chmod(0o640)
    for path in (new, readable, grouped):
        make_private_file(path)
    assert [mode(path) for path in (new, readable, grouped)] == [0o600, 0o600, 0o640]
    assert readable.read_text() == "kept"


def test_a_file_that_a_secret_is_redirected_to_is_closed(tmp_path: Path) -> None:
    file = tmp_path / "token"
    with file.open("w") as output, contextlib.redirect_stdout(output):
        say_secret("ifed_token")
    assert (mode(file), file.read_text()) == (0o600, "ifed_token\n")


class Named(BaseModel):
    token_file: Path | None = None
    key_file: Path | None = None


def test_a_start_warns_of_a_secret_file_that_others_can_read(open_folder: Path) -> None:
    readable, closed = open_folder / "token", open_folder / "key"
    readable.write_text("secret-word")
    make_private_file(closed)
    with capture_logs() as logs:
        warn_of_readable_files(Named(token_file=readable, key_file=closed), "token_file", "key_file")
        warn_of_readable_files(Named(), "token_file")
    assert [(entry["log_level"], entry["setting"], entry["hint"]) for entry in logs] == [
        ("warning", "TOKEN_FILE", f"chmod 600 {readable}")
    ]
    open_folder.chmod(0o700)  # as `secrets/` is, where the files themselves must be readable in containers
    with capture_logs() as logs:
        warn_of_readable_files(Named(token_file=readable), "token_file")
    assert logs == []
