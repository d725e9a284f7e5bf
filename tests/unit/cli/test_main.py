"""What cannot be used is refused in one sentence and an exit code, before anything is sent."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ifed.cli.console import ExitCode
from ifed.cli.main import app, main

NOBODY = "http://127.0.0.1:1"
TOKEN = ("--token", "token")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file of each kind that cannot be used."""
    (tmp_path / "empty").touch()
    (tmp_path / "latin-1").write_bytes("Café".encode("latin-1"))
    (tmp_path / "no-task.json").write_text('{"name": "x"}')
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("task", "list", *TOKEN, "--aggregator", "foo"), "--aggregator: 'foo' is no URL of a service"),
        (("task", "list", *TOKEN, "--aggregator", "ftp://host"), "it begins with http:// or https://"),
        (("task", "list", *TOKEN, "--aggregator", "http://[bad"), "is no URL of a service"),
        (("task", "list", *TOKEN, "--aggregator", "http://host:99999"), "is no URL of a service"),
        (("task", "list", *TOKEN, "--aggregator", "me:password@host"), "--aggregator: the address is no URL of a service"),
        (("classify", "task", "text", "--inference", "foo"), "--inference: 'foo' is no URL of a service"),
        (("task", "list", "--token", ""), "--token is empty"),
        (("classify", "task", "text", "--token", " "), "--token is empty"),
        (("--token-file", "missing", "task", "list"), "missing cannot be used: no such file or directory"),
        (("--token-file", "empty", "task", "list"), "empty is empty and should hold a token"),
        (("--token-file", "latin-1", "task", "list"), "latin-1 is not UTF-8 (byte 3)"),
        (("task", "create", "missing", *TOKEN), "missing cannot be used: no such file or directory"),
        (("task", "create", "folder", *TOKEN), "folder cannot be used: is a directory"),
        (("task", "create", "no-task.json", *TOKEN), "no-task.json is not a task: labels: Field required"),
        (("classify", "task", "--file", "missing.parquet"), "missing.parquet cannot be used: no such file or directory"),
        (("classify", "task", "text", "--out", "missing/rows"), "missing/rows cannot be used: no such file or directory"),
        (("client", "enrol", "UPPER", *TOKEN), "name: String should match pattern"),
        (("client", "enrol", "a", *TOKEN, "--output", "missing/token"), "missing/token cannot be used"),
        (("client", "rotate", "a", *TOKEN, "--output", "folder"), "folder cannot be used: is a directory"),
        (("webhook", "add", "a", "https://host", *TOKEN, "-o", "missing/secret"), "missing/secret cannot be used"),
    ],
)
def test_what_cannot_be_used_is_one_sentence_and_exit_code_2(
    words: tuple[str, ...],
    sentence: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    for name in ("IFED_TOKEN", "IFED_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["ifed", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    output = capsys.readouterr()
    assert (ended.value.code, output.out) == (ExitCode.BAD_ARGUMENTS, "")
    assert output.err.startswith("BadArguments ")
    assert sentence in output.err
    assert output.err.count("\n") == 1
    assert "password" not in output.err


def test_a_file_stays_as_it_was_when_no_new_token_was_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "token").write_text("the old one")
    result = CliRunner().invoke(app, ["client", "rotate", "a", *TOKEN, "--aggregator", NOBODY, "--output", str(folder / "token")])
    assert result.exit_code != 0
    assert (folder / "token").read_text() == "the old one"
    assert not list(folder.glob(".*"))


def test_a_token_file_is_read_by_the_commands_that_need_a_token_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"IFED_TOKEN_FILE": str(folder / "missing"), "IFED_TOKEN": None}
    assert CliRunner().invoke(app, ["version"], env=environment).exit_code == 0
    assert "missing cannot be used" in str(CliRunner().invoke(app, ["task", "list"], env=environment).exception)
