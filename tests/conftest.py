"""Fixtures for every test: the real servers."""

from __future__ import annotations

from hypothesis import settings

pytest_plugins = ["testing.servers"]

# A shared machine may take its time over an example; pytest-timeout watches over the whole test.
settings.register_profile("house", deadline=None)
settings.load_profile("house")
