"""Refusals that only a client agent gives. Knows no HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential_jitter

from ifed.clients.aggregator import AggregatorClient
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
from services.client_agent.participation import Participation
from services.client_agent.status import Activity, Status


class CannotTakePart(IFedError):
    """The agent cannot work on this task and says what an operator should change; it does not try again by itself."""


log = structlog.get_logger(__name__)
Result = TypeVar("Result")
PASSING = (Unavailable, Overloaded, UnknownTask)  # an agent may be started before its task is made
LONGEST_PAUSE = 30.0
SHORTEST_PAUSE = 0.2


class Agent:
    """Runs one organisation's part in one task until it is done.

    Args:
        aggregator: where assignments come from.
        prepare: reads the data and loads the model for a task, once; the result joins and contributes.
        status: told what goes on.
        wait: seconds the aggregator may hold a question back.
        stay: go on asking after the task has finished, for a later start.
        grown: whether there may be more demonstrations to send for this client than there were; asked in idle time.
    """

    def __init__(
        self,
        aggregator: AggregatorClient,
        prepare: Callable[[TaskBrief, str], Awaitable[Participation]],
        status: Status,
        *,
        task: str,
        wait: float,
        stay: bool = False,
        grown: Callable[[str | None], bool] = lambda _client: False,
    ) -> None:
        self._aggregator, self._prepare, self._status = aggregator, prepare, status
        self._task, self._wait, self._stay = task, wait, stay
        self._grown = grown
        self._part: Participation | None = None
        self._prepared_for = ""

    async def run(self) -> TaskState:
        """Take part until the task has finished.

        Raises:
            CannotTakePart: the aggregator refuses this client for good; the message says what to change.
        """
        while True:
            self._status.begin(Activity.ASKING if self._part is None else Activity.WAITING)
            assignment = await self._patiently(lambda: self._aggregator.assignment(self._task, wait=self._wait))
            self._count_bytes()
            if assignment.kind is AssignmentKind.WITHDRAWN:
                self._status.begin(Activity.DONE, note="withdrawn from the task")
                return assignment.state
            await self._look_for_more(assignment)
            if assignment.kind is AssignmentKind.DONE:
                if assignment.state is TaskState.FINISHED and not self._stay:
                    self._status.begin(Activity.DONE)
                    log.info("the task has finished; STAY=true would wait for a later start", task=self._task)
                    return assignment.state
                await self._ended(assignment)
            elif assignment.kind is AssignmentKind.WAIT:
                await asyncio.sleep(SHORTEST_PAUSE)  # an aggregator that does not hold the question back is not asked in a loop
            else:
                await self._patiently(partial(self._follow, assignment))
                self._count_bytes()

    async def _look_for_more(self, assignment: Assignment) -> None:
        """In idle time, send what the data file has more than before."""
        left = assignment.kind is AssignmentKind.DONE and assignment.state is TaskState.FINISHED
        if assignment.kind is not AssignmentKind.WAIT and not left:
            return
        if self._grown(assignment.client):
            try:
                await self._patiently(partial(self._add_more, assignment))
            except BadData as refusal:  # what was read before goes on to count; the file may be half written
                log.warning("data file cannot be read now", detail=refusal.detail)
        elif self._part is not None and self._part.waits:
            await self._patiently(partial(self._part.add, assignment.task))
        self._count_bytes()

    async def _add_more(self, assignment: Assignment) -> None:
        part = await self._prepare(assignment.task, assignment.client or "")
        await part.join(assignment.task)
        self._part, self._prepared_for = part, _terms(assignment.task)
        await part.add(assignment.task)

    async def _follow(self, assignment: Assignment) -> None:
        if self._part is None or self._prepared_for != _terms(assignment.task):
            self._part = await self._prepare(assignment.task, assignment.client or "")
            self._prepared_for = _terms(assignment.task)
            if assignment.kind is not AssignmentKind.JOIN:
                await self._part.join(assignment.task)
        if assignment.kind is AssignmentKind.ADDITION:
            await self._part.add(assignment.task, first=True)
            return
        if assignment.kind is AssignmentKind.JOIN:
            await self._part.join(assignment.task)
            return
        try:
            await self._part.contribute(assignment)
        except NotJoined:
            await self._part.join(assignment.task)

    async def _ended(self, assignment: Assignment) -> None:
        log.warning("task has ended, waiting for a new start", state=assignment.state, reason=assignment.reason)
        self._status.begin(Activity.WAITING, note=f"task {assignment.state}: {assignment.reason or 'waiting for a new start'}")
        await asyncio.sleep(min(LONGEST_PAUSE, max(1.0, self._wait)))

    async def _patiently(self, step: Callable[[], Awaitable[Result]]) -> Result:
        """Try `step` until the aggregator answers; a refusal that will not pass ends the agent with words to its operator."""
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(PASSING),
                wait=_pause,
                before_sleep=self._tell_retry,
                reraise=True,
            ):
                with attempt:
                    return await step()
        except BadData:
            raise
        except (Unauthenticated, Forbidden, NotFound, Malformed, Conflict) as refusal:
            raise CannotTakePart(f"{type(refusal).__name__}: {refusal.detail}") from refusal
        raise AssertionError("tenacity gave up, and was never told to")

    def _tell_retry(self, attempt: RetryCallState) -> None:
        error = attempt.outcome.exception() if attempt.outcome else None
        pause = attempt.next_action.sleep if attempt.next_action else 0.0
        detail = error.detail if isinstance(error, IFedError) else str(error)
        self._status.begin(Activity.RETRYING, note=detail)
        log.warning("will try again", attempt=attempt.attempt_number, seconds=round(pause, 1), detail=detail)

    def _count_bytes(self) -> None:
        self._status.bytes_up, self._status.bytes_down = self._aggregator.bytes_up, self._aggregator.bytes_down


def _terms(task: TaskBrief) -> str:
    """What a participation was prepared for; a draft that an admin changed is prepared for anew."""
    return task.model_dump_json(exclude={"identity", "layout"})


_backoff = wait_exponential_jitter(multiplier=0.5, max=LONGEST_PAUSE, jitter=0.5)


def _pause(attempt: RetryCallState) -> float:
    """Longer after each failure, and never shorter than the service asked for."""
    error = attempt.outcome.exception() if attempt.outcome else None
    asked = error.retry_after if isinstance(error, IFedError) and error.retry_after else 0
    return max(float(asked), _backoff(attempt))
