"""What a setting only names is read at the start, and said in words when it is of no use."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.inference.app import main


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        ("ada short\n", "line 1 of the key file is not a name and a key of 16 characters or more"),
        ("# nobody\n", "the key file holds no key"),
    ],
)
def test_a_key_file_of_no_use_ends_the_service_at_once(
    content: str | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    for name, value in {"KEY_FILE": file, "ADAPTER_FOLDER": tmp_path, "MODEL": "tiny"}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ADAPTER_FOLDER", "DEMONSTRATIONS_FOLDER"])
def test_a_folder_that_is_not_there_ends_the_service_at_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"ADAPTER_FOLDER": tmp_path, "OPEN_ACCESS": "true", "MODEL": "tiny"} | {name: tmp_path / "none"}
    for one, value in given.items():
        monkeypatch.setenv(one, str(value))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert f"{name}={tmp_path / 'none'} is not a folder" in capsys.readouterr().err


def test_settings_that_contradict_each_other_are_told_as_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("AGGREGATOR_URL", "ADAPTER_FOLDER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MODEL", "tiny")
    with pytest.raises(SystemExit):
        main()
    assert "SETTINGS: set AGGREGATOR_URL or ADAPTER_FOLDER, one of the two\n" in capsys.readouterr().err


def test_a_token_of_no_use_ends_the_service_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {"READER_TOKEN": "ifed_…", "AGGREGATOR_URL": "http://127.0.0.1:1", "MODEL": "tiny"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "copy the whole of it" in capsys.readouterr().err
