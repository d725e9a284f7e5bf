"""Wrong settings, and files and folders that they name, are reported in a sentence at the start."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from services.inference.app import main
from services.inference.settings import Settings

FOLDER = {"model": "tiny", "adapter_folder": Path("adapters"), "open_access": True}


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def start(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], **settings: object) -> str:
    """Start a service that must exit with status 2, and return what it wrote to standard error."""
    for name, value in {"MODEL": "tiny", **settings}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"adapter_folder": "adapters"},
        {"aggregator_url": "http://127.0.0.1:1"},
        {"aggregator_url": "http://127.0.0.1:1", "reader_token": "x", "adapter_folder": "adapters", "open_access": True},
        {"adapter_folder": "adapters", "open_access": True, "key_file": "keys"},
    ],
)
def test_settings_that_leave_source_or_access_open_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate({"model": "m"} | settings)


def test_the_only_task_is_the_default_task() -> None:
    assert Settings.model_validate(FOLDER | {"tasks": "a"}).fallback_task == "a"
    assert Settings.model_validate(FOLDER | {"tasks": "a,b"}).fallback_task is None
    assert Settings.model_validate(FOLDER | {"tasks": "a,b", "default_task": "b"}).fallback_task == "b"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        ("ada short\n", "line 1 of the key file is not a name and a key of 16 characters or more"),
        ("# nobody\n", "the key file has no key"),
    ],
)
def test_a_key_file_without_usable_keys_ends_the_service_at_once(
    content: str | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    assert words in start(monkeypatch, capsys, KEY_FILE=file, ADAPTER_FOLDER=tmp_path)


@pytest.mark.parametrize("name", ["ADAPTER_FOLDER", "DEMONSTRATIONS_FOLDER"])
def test_a_missing_folder_ends_the_service_at_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"ADAPTER_FOLDER": tmp_path, "OPEN_ACCESS": "true"} | {name: tmp_path / "none"}
    assert f"{name}={tmp_path / 'none'} is not a folder" in start(monkeypatch, capsys, **settings)


def test_contradicting_settings_are_reported_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "SETTINGS: neither AGGREGATOR_URL nor ADAPTER_FOLDER is set" in start(monkeypatch, capsys)
    both = {"AGGREGATOR_URL": "http://127.0.0.1:1", "ADAPTER_FOLDER": "adapters", "OPEN_ACCESS": "true"}
    message = start(monkeypatch, capsys, **both)
    assert "AGGREGATOR_URL and ADAPTER_FOLDER are both set; unset AGGREGATOR_URL to serve the folder, or ADAPTER_FOLDER" in message
    tokens = {"READER_TOKEN": "a", "READER_TOKEN_FILE": "b", "ADAPTER_FOLDER": ""}
    assert "READER_TOKEN and READER_TOKEN_FILE are both set; unset one" in start(monkeypatch, capsys, **tokens)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("HTTPS_PROXY", "foo://a:secret@b", "a proxy cannot be used"),
        ("CA_FILE", "none.pem", "none.pem cannot be read as certificates"),
    ],
)
def test_a_proxy_or_ca_file_that_cannot_be_used_ends_the_service_at_once_in_a_sentence(
    name: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = start(monkeypatch, capsys, READER_TOKEN="token", AGGREGATOR_URL="https://aggregator", **{name: value})
    assert words in error
    assert "secret" not in error
    assert len(error.splitlines()) == 1


def test_a_truncated_token_ends_the_service_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    error = start(monkeypatch, capsys, READER_TOKEN="ifed_…", AGGREGATOR_URL="http://127.0.0.1:1")
    assert "copy the whole of it" in error
