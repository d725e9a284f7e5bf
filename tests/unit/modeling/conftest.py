"""Fixtures of the language model's tests."""

from __future__ import annotations

from testing.random_models import one_thread as one_thread
