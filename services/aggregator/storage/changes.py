"""Change tracking: which domain events a transaction writes when it commits."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from ifed.messages.enums import RoundState, TaskState
from ifed.messages.events import EventKind
from services.aggregator.domain.aggregates import Aggregate
from services.aggregator.domain.events import DomainEvent, of_context, of_deletion, of_round, of_task
from services.aggregator.domain.round import Round
from services.aggregator.domain.task import Task


class ChangeTracker:
    """Remembers what a transaction loaded and saved, and compares the two.

    A task or round that was saved without having been loaded is new.
    """

    def __init__(self) -> None:
        self._loaded_tasks: dict[str, tuple[TaskState, int | None]] = {}
        self._saved_tasks: dict[str, Task] = {}
        self._deleted_tasks: list[str] = []
        self._loaded_rounds: dict[tuple[str, int], RoundState] = {}
        self._saved_rounds: dict[tuple[str, int], Round] = {}
        self._added_contexts: list[Aggregate] = []

    def task_loaded(self, task: Task) -> Task:
        """Remember the task as the database holds it, and return it."""
        self._loaded_tasks.setdefault(task.name, (task.state, task.served))
        return task

    def task_saved(self, task: Task) -> None:
        """Remember the task as it was written."""
        self._saved_tasks[task.name] = replace(task)

    def task_deleted(self, name: str) -> None:
        """Remember that the task was removed; one that is added afterwards under its name is new."""
        self._deleted_tasks.append(name)
        self._loaded_tasks.pop(name, None)
        self._saved_tasks.pop(name, None)

    def round_loaded(self, round_: Round) -> Round:
        """Remember the round as the database holds it, and return it.

        The first load counts: a caller may hold the round from then, change it, and load it again.
        """
        self._loaded_rounds.setdefault((round_.task, round_.number), round_.state)
        return round_

    def round_saved(self, round_: Round) -> None:
        """Remember the round as it was written."""
        self._saved_rounds[round_.task, round_.number] = replace(round_)

    def context_added(self, aggregate: Aggregate) -> None:
        """Remember a new version of a context vector."""
        self._added_contexts.append(aggregate)

    def take_events(self, at: datetime) -> list[DomainEvent]:
        """Return the events of everything that changed, and take what was saved as loaded from here on.

        Rounds that ended come before tasks, because a task fails or finishes, and an adapter is promoted, because of a round. Rounds
        that opened come last.

        Args:
            at: the time that the events carry.
        """
        rounds: list[DomainEvent] = []
        for key, round_ in self._saved_rounds.items():
            rounds += of_round(self._loaded_rounds.get(key), round_, at)
            self._loaded_rounds[key] = round_.state
        tasks = [event for name in self._deleted_tasks for event in of_deletion(name, at)]
        for name, task in self._saved_tasks.items():
            tasks += of_task(self._loaded_tasks.get(name), task, at)
            self._loaded_tasks[name] = task.state, task.served
        contexts = [event for aggregate in self._added_contexts for event in of_context(aggregate, at)]
        self._saved_rounds, self._saved_tasks, self._deleted_tasks, self._added_contexts = {}, {}, [], []
        opened = [event for event in rounds if event.kind is EventKind.ROUND_OPENED]
        ended = [event for event in rounds if event.kind is not EventKind.ROUND_OPENED]
        return [*ended, *contexts, *tasks, *opened]
