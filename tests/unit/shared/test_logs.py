"""A logged error shows its traceback and never the values of variables."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from ifed.server.logs import configure


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def broken(text: str) -> None:
    raise ValueError("no such thing")


@pytest.mark.parametrize("json_lines", [True, False])
def test_a_traceback_shows_no_variables(json_lines: bool) -> None:
    stream = io.StringIO()
    configure("INFO", stream=stream, json_lines=json_lines)
    private = "PRIVATE PATIENT TEXT"
    try:
        broken(private)
    except ValueError:
        structlog.get_logger("test").exception("it broke")
    assert "no such thing" in stream.getvalue()
    assert "test_logs.py" in stream.getvalue()
    assert "PATIENT" not in stream.getvalue()


def test_without_a_terminal_every_line_is_one_json_object() -> None:
    stream = io.StringIO()
    configure("INFO", stream=stream)
    structlog.get_logger("test").info("two\nlines", task="sentiment")
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line) | {"timestamp": ""} == {
        "event": "two\nlines",
        "task": "sentiment",
        "logger": "test",
        "level": "info",
        "timestamp": "",
    }


@pytest.mark.parametrize("library", ["torchao", "torch.utils._pytree"])
def test_warnings_of_torchaos_import_are_hidden_and_its_errors_are_not(library: str) -> None:
    logger = logging.getLogger(library)
    logger.setLevel(logging.NOTSET)
    configure("INFO", stream=io.StringIO())
    assert not logger.isEnabledFor(logging.WARNING)
    assert logger.isEnabledFor(logging.ERROR)
