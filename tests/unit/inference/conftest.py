"""Fixtures of the inference service's tests, some of which run a random model."""

from __future__ import annotations

from testing.random_models import one_thread as one_thread
