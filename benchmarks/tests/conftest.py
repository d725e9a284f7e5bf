"""Fixtures of all tests of the benchmarks, many of which run a small model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.paper.methods import SETTINGS, TASKS
from testing.random_models import HIDDEN
from testing.random_models import one_thread as one_thread

DEFAULT_SETTINGS, DEFAULT_TASKS = dict(SETTINGS), dict(TASKS)


@pytest.fixture(autouse=True)
def groups_of_a_small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit the coefficient groups to those that divide the hidden size of the random model, and the rounds for its label head."""
    for name, setting in SETTINGS.items():
        monkeypatch.setitem(SETTINGS, name, replace(setting, groups=min(setting.groups, HIDDEN)))
    for name, task in TASKS.items():
        policy = {"head_rounds": 2, **task.policy}
        monkeypatch.setitem(TASKS, name, replace(task, groups=min(task.groups, HIDDEN), policy=policy))
