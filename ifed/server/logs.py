"""Logging of every process: readable on a terminal, otherwise one JSON object per line."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog
from asgi_correlation_id import correlation_id


def _with_request_id(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    if (request_id := correlation_id.get()) is not None:
        event["request_id"] = request_id
    return event


def _without_colour(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    event.pop("color_message", None)  # uvicorn sends its words twice, once with escape codes
    return event


def configure(level: str = "INFO", *, stream: TextIO | None = None, json_lines: bool | None = None) -> None:
    """Send structlog's and the standard library's records to `stream` in one format.

    Args:
        level: the lowest level shown, by its name in the standard library.
        stream: standard error if not given.
        json_lines: whether to write JSON instead of readable text; if not given, JSON unless `stream` is a terminal.
    """
    stream = stream or sys.stderr
    as_json = not stream.isatty() if json_lines is None else json_lines
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        _with_request_id,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        _without_colour,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if as_json
        else [structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback)]
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer]
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    for chatty in ("httpx", "httpcore", "alembic", "aiosqlite", "filelock"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    hush_imports()
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def hush_imports() -> None:
    """Silence the warnings of torchao on import; transformers imports it wherever it is installed.

    They concern kernels for other hardware and torchao's own use of torch, which a user can change neither of. Call this before torch is
    imported.
    """
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
