"""The agent's loop: poll for an assignment, follow it, retry while the aggregator is unavailable, and end with the task."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_exponential_jitter

from ifed.clients import AggregatorClient
from ifed.errors import (
    BadData,
    Conflict,
    Forbidden,
    IFedError,
    Malformed,
    NotFound,
    NotJoined,
    Overloaded,
    Unauthenticated,
    Unavailable,
    UnknownTask,
)
from ifed.messages.enums import AssignmentKind, TaskState
from ifed.messages.rounds import Assignment, TaskBrief
from services.client_agent.limits import Limits
from services.client_agent.participation import Participant
from services.client_agent.status import Activity, Status

log = structlog.get_logger(__name__)
Result = TypeVar("Result")
HTTP_ERROR_OF_SERVER = 500
LONGEST_REASON = 500  # characters of an aggregator's reason that are shown
MAX_PAUSE_SECONDS = 30.0
MIN_PAUSE_SECONDS = 0.2
backoff = wait_exponential_jitter(multiplier=0.5, max=MAX_PAUSE_SECONDS, jitter=0.5)


class CannotTakePart(IFedError):
    """The agent cannot work on this task until an operator changes what the message names; the agent does not retry."""


class Agent:
    """Take part in one task on behalf of one organisation until the task is done.

    Args:
        aggregator: where assignments come from.
        prepare: read the data and load the model for a task and a client.
        status: receives the present activity.
        task: the name of the task.
        limits: what the aggregator may ask for.
        wait: seconds the aggregator may hold a long poll.
        wait_for_task: keep asking while the task does not exist.
        stay: keep polling after the task has finished, for a later start.
        has_new_data: whether a client's data file may contain demonstrations that were not sent yet; called in idle time.
    """

    def __init__(
        self,
        aggregator: AggregatorClient,
        prepare: Callable[[TaskBrief, str], Awaitable[Participant]],
        status: Status,
        *,
        task: str,
        limits: Limits,
        wait: float,
        wait_for_task: bool = False,
        stay: bool = False,
        has_new_data: Callable[[str], bool] = lambda _client: False,
    ) -> None:
        self._aggregator, self._prepare, self._status = aggregator, prepare, status
        self._task, self._wait, self._stay = task, wait, stay
        self._has_new_data = has_new_data
        self._limits, self._wait_for_task = limits, wait_for_task
        self._participant: Participant | None = None
        self._prepared_for = ""

    async def run(self) -> TaskState:
        """Take part until the task has finished or this client has withdrawn, and return the task's state.

        Raises:
            CannotTakePart: the aggregator refuses this client permanently; the message says what to change.
            BadData: the data file is missing or contains a bad row.
        """
        while True:
            self._status.begin(Activity.ASKING if self._participant is None else Activity.WAITING)
            assignment = await self._retry(self._ask)
            self._count_bytes()
            if assignment.kind is AssignmentKind.WITHDRAWN:
                self._status.begin(Activity.DONE, note="withdrawn from the task")
                return assignment.state
            await self._send_new_data(assignment)
            if assignment.kind is AssignmentKind.DONE:
                if assignment.state is TaskState.FINISHED and not self._stay:
                    self._status.begin(Activity.DONE)
                    log.info("the task has finished; STAY=true would wait for a later start", task=self._task)
                    return assignment.state
                await self._wait_for_restart(assignment)
            elif assignment.kind is AssignmentKind.WAIT:
                await asyncio.sleep(MIN_PAUSE_SECONDS)  # an aggregator that answers at once must not be polled in a busy loop
            else:
                await self._retry(partial(self._follow, assignment))
                self._count_bytes()

    async def _ask(self) -> Assignment:
        """Return the next assignment.

        Raises:
            BeyondLimits: it asks for more than this organisation allows.
        """
        assignment = await self._aggregator.assignment(self._task, wait=self._wait)
        self._limits.check(assignment, self._task)
        return assignment

    async def _send_new_data(self, assignment: Assignment) -> None:
        """In idle time, send the demonstrations of the data file that were not sent yet."""
        has_finished = assignment.kind is AssignmentKind.DONE and assignment.state is TaskState.FINISHED
        if assignment.kind is not AssignmentKind.WAIT and not has_finished:
            return
        if assignment.client is not None and self._has_new_data(assignment.client):
            try:
                await self._retry(partial(self._read_again_and_add, assignment))
            except BadData as refusal:  # the file may be half written; the data read before is still used
                log.warning("cannot read the data file", detail=refusal.detail)
        elif self._participant is not None and self._participant.awaits_answer:
            await self._retry(partial(self._participant.add, assignment.task))
        self._count_bytes()

    async def _read_again_and_add(self, assignment: Assignment) -> None:
        participant = await self._prepare(assignment.task, assignment.client or "")
        await participant.join(assignment.task)
        self._participant, self._prepared_for = participant, _definition(assignment.task)
        await participant.add(assignment.task)

    async def _follow(self, assignment: Assignment) -> None:
        if self._participant is None or self._prepared_for != _definition(assignment.task):
            self._participant = await self._prepare(assignment.task, assignment.client or "")
            self._prepared_for = _definition(assignment.task)
            if assignment.kind is not AssignmentKind.JOIN:
                await self._participant.join(assignment.task)
        if assignment.kind is AssignmentKind.ADDITION:
            await self._participant.add(assignment.task, first=True)
            return
        if assignment.kind is AssignmentKind.JOIN:
            await self._participant.join(assignment.task)
            return
        try:
            await self._participant.contribute(assignment)
        except NotJoined:
            await self._participant.join(assignment.task)

    async def _wait_for_restart(self, assignment: Assignment) -> None:
        reason = (assignment.reason or "")[:LONGEST_REASON]
        log.warning("task has ended, waiting for a restart", state=assignment.state, reason=reason or None)
        self._status.begin(Activity.WAITING, note=f"task {assignment.state}: {reason or 'waiting for a restart'}")
        await asyncio.sleep(min(MAX_PAUSE_SECONDS, max(1.0, self._wait)))

    async def _retry(self, step: Callable[[], Awaitable[Result]]) -> Result:
        """Call `step` until the aggregator answers.

        Raises:
            CannotTakePart: the aggregator refused permanently.
            BadData: the data file is missing or contains a bad row.
        """
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception(self._is_retried), wait=_pause, before_sleep=self._report_retry, reraise=True
            ):
                with attempt:
                    return await step()
        except BadData:
            raise
        except UnknownTask as refusal:
            raise CannotTakePart(
                f"UnknownTask: {refusal.detail}; set TASK, or WAIT_FOR_TASK=true to wait until it exists"
            ) from refusal
        except (Unauthenticated, Forbidden, NotFound, Malformed, Conflict) as refusal:
            raise CannotTakePart(f"{type(refusal).__name__}: {refusal.detail}") from refusal
        raise AssertionError("unreachable: retrying without a stop condition returns or raises")

    def _is_retried(self, error: BaseException) -> bool:
        if isinstance(error, UnknownTask):
            return self._wait_for_task
        return isinstance(error, (Unavailable, Overloaded)) or (type(error) is IFedError and error.status >= HTTP_ERROR_OF_SERVER)

    def _report_retry(self, attempt: RetryCallState) -> None:
        error = attempt.outcome.exception() if attempt.outcome else None
        pause = attempt.next_action.sleep if attempt.next_action else 0.0
        detail = error.detail if isinstance(error, IFedError) else str(error)
        self._status.begin(Activity.RETRYING, note=detail)
        log.warning("retrying", attempt=attempt.attempt_number, seconds=round(pause, 1), detail=detail)

    def _count_bytes(self) -> None:
        self._status.bytes_up, self._status.bytes_down = self._aggregator.bytes_up, self._aggregator.bytes_down


def _definition(task: TaskBrief) -> str:
    """Return the definition a participant is prepared for; it is prepared again when an admin changes the draft of a task."""
    return task.model_dump_json(exclude={"identity", "layout"})


def _pause(attempt: RetryCallState) -> float:
    """Return the seconds to wait: exponential backoff, and at least the aggregator's Retry-After."""
    error = attempt.outcome.exception() if attempt.outcome else None
    retry_after = error.retry_after if isinstance(error, IFedError) and error.retry_after else 0
    return max(float(retry_after), backoff(attempt))
