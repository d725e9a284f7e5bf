"""Fixtures and settings of every test."""

from __future__ import annotations

import gc
import os

import pytest
import structlog
from hypothesis import settings

pytest_plugins = ["testing.servers"]

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: each worker has a core of its own

# A shared machine may take its time over an example; pytest-timeout watches over the whole test.
settings.register_profile("house", deadline=None)
settings.register_profile("fast", deadline=None, max_examples=10)  # make test-fast
settings.load_profile("house")

# What a test logs of an exception is its traceback. The default adds the values of all locals, which takes a second.
structlog.configure(
    processors=[
        *structlog.get_config()["processors"][:-1],
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
    ]
)

# Importing torch, transformers and the services makes half a million objects that stay. Going through them again and again took an
# eighth of the tests' time.
gc.disable()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave what was imported to the end of the process, and collect garbage again from here on."""
    gc.freeze()
    gc.enable()
