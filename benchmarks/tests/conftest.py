"""What holds for every test of a benchmark that runs a model: what holds for the torch room."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.paper.methods import SETTINGS
from testing.random_models import HIDDEN
from testing.random_models import one_thread as one_thread

AS_SET = dict(SETTINGS)


@pytest.fixture(autouse=True)
def groups_of_a_small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more coefficient groups than divide the hidden size of a random model."""
    for name, setting in SETTINGS.items():
        monkeypatch.setitem(SETTINGS, name, replace(setting, groups=min(setting.groups, HIDDEN)))
