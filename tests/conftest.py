"""Fixtures and settings of every test."""

from __future__ import annotations

import os

from hypothesis import settings

pytest_plugins = ["testing.servers"]

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: each worker has a core of its own

# A shared machine may take its time over an example; pytest-timeout watches over the whole test.
settings.register_profile("house", deadline=None)
settings.register_profile("fast", deadline=None, max_examples=10)  # make test-fast
settings.load_profile("house")
