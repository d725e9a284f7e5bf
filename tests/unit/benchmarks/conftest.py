"""What holds for every test of a benchmark that runs a model: what holds for the torch room."""

from __future__ import annotations

from tests.unit.modeling.conftest import one_thread as one_thread
