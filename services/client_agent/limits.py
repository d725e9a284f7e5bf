"""This organisation's own limits: what an aggregator may ask of the agent, whoever runs it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pydantic import ValidationError

from ifed.errors import BeyondLimits
from ifed.messages.rounds import Assignment, LocalWork, TaskBrief
from ifed.messages.tasks import TaskSpec
from ifed.messages.validation import describe_errors

MODEL_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
MOST_LAYERS = 1000
LARGEST_RATE = 10.0  # of learning, decay and logit adjustment, as in a task's policy


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that a task may ask for, and the fewest texts in a context vector.

    Attributes:
        rounds: number of the last round, and calibration rounds of a policy.
        steps: optimiser steps of one round.
        batch_size: examples of one step.
        labels: labels of a task.
        examples: texts behind a context vector, at least.
    """

    rounds: int
    steps: int
    batch_size: int
    labels: int
    examples: int

    def check(self, assignment: Assignment, task: str) -> None:
        """Check an assignment for the task of this name before anything is loaded or computed for it.

        Raises:
            BeyondLimits: it is of another task, or asks for more than the limits allow; the message names the setting.
        """
        if assignment.task.name != task:
            raise BeyondLimits(f"the aggregator answered for task {assignment.task.name!r} instead of {task!r}")
        self._check_task(assignment.task)
        if assignment.round is not None:
            _at_most("round", assignment.round, self.rounds, "MAX_ROUNDS", least=0)
        if assignment.work is not None:
            self._check_work(assignment.work)

    def _check_task(self, task: TaskBrief) -> None:
        policy = task.policy
        _at_most("labels", len(task.labels), self.labels, "MAX_LABELS")
        _at_most("policy.rounds", policy.rounds, self.rounds, "MAX_ROUNDS")
        _at_most("policy.local_steps", policy.local_steps, self.steps, "MAX_STEPS")
        _at_most("policy.batch_size", policy.batch_size, self.batch_size, "MAX_BATCH_SIZE")
        if isinstance(task.layers, list) and len(task.layers) > MOST_LAYERS:
            raise BeyondLimits(f"the task asks for {len(task.layers)} layers, more than any model has")
        if policy.max_demonstrations < self.examples:
            raise BeyondLimits(
                f"the task asks for a context vector of at most {policy.max_demonstrations} texts, fewer than MIN_EXAMPLES={self.examples}; "
                "a vector of few texts shows what they say"
            )
        try:
            TaskSpec(
                name=task.name,
                labels=task.labels,
                template=task.template,
                chat=task.chat,
                model=task.model,
                identity=task.identity,
                layers=task.layers,
                groups=task.groups,
                head=task.head,
                injection=task.injection,
                policy=policy,
            )
        except ValidationError as reason:
            raise BeyondLimits(
                f"the task's definition is none that a task may have: {describe_errors(reason.errors())}"
            ) from reason

    def _check_work(self, work: LocalWork) -> None:
        _at_most("steps", work.steps, self.steps, "MAX_STEPS")
        _at_most("batch_size", work.batch_size, self.batch_size, "MAX_BATCH_SIZE")
        for name in ("learning_rate", "learning_rate_end", "weight_decay", "logit_adjustment"):
            if not 0 <= getattr(work, name) <= LARGEST_RATE:
                raise BeyondLimits(
                    f"the aggregator asks for a {name} of {getattr(work, name):g}; the agent takes 0 to {LARGEST_RATE:g}"
                )


def check_model_name(name: str) -> str:
    """Return a task's name for its model, if it is a catalogue name or a Hugging Face id and cannot be a folder of this machine or a URL.

    Raises:
        BeyondLimits: it is something else.
    """
    if MODEL_NAME.fullmatch(name) is None or ".." in name:
        raise BeyondLimits(
            f"the task names the model {name[:100]!r}, which is no catalogue name or Hugging Face id; set MODEL to the one to load"
        )
    return name


def _at_most(name: str, value: int, most: int, setting: str, *, least: int = 1) -> None:
    if not least <= value <= most:
        raise BeyondLimits(f"the aggregator asks for {name} {str(value)[:20]}; {setting} allows {least} to {most}")
