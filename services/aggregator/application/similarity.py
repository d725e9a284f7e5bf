"""The task cache: which finished tasks are like a new one, and coefficients taken over from them. Knows no HTTP and no SQL.

"Application optimisation" of arXiv 2511.06757: tasks with like context vectors have like coefficients.
"""

from __future__ import annotations

from collections.abc import Sequence

from ifed.errors import NothingYet, UnknownTask, WrongState
from ifed.messages.bodies import read_coefficients
from ifed.messages.enums import TaskState
from ifed.messages.rounds import Evaluation, Match, Matches, MatchRequest
from ifed.tensors.values import TensorBody
from services.aggregator.aggregation.sketch import comparison_key
from services.aggregator.application import messages
from services.aggregator.application.dependencies import Dependencies
from services.aggregator.domain.round import Round
from services.aggregator.domain.schedule import NEAREST
from services.aggregator.domain.task import Task
from services.aggregator.storage.database import UnitOfWork


class TaskSimilarity:
    """For admins who look for a task to start from."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies

    async def match(self, request: MatchRequest) -> Matches:
        """Finished tasks by the likeness of their context vectors, the most similar first; NothingYet before the task has its own."""
        async with self._dependencies.database.read_only() as work:
            await work.tasks.get(request.task)
            if (kept := await work.sketches.find(request.task)) is None:
                raise NothingYet(f"task {request.task!r} has no context vector before its first round closes")
            key, numbers = kept
            found = await work.sketches.nearest(request.task, key, numbers, request.limit)
            return Matches(items=[await _match(work, name, similarity) for name, similarity in found])


async def _match(work: UnitOfWork, name: str, similarity: float) -> Match:
    task = await work.tasks.get(name)
    assert task.served is not None, "only tasks that serve a version are matched"
    return Match(
        task=name, similarity=similarity, version=task.served, labels=task.spec.labels, evaluation=await _served(work, task)
    )


async def _served(work: UnitOfWork, task: Task) -> Evaluation | None:
    measure = dict(await work.rounds.evaluations(task.name)).get(task.served or 0)
    return None if measure is None or task.served is None else messages.evaluation(task.served, measure)


async def keep_sketch(work: UnitOfWork, task: Task, numbers: Sequence[float]) -> None:
    """Make a task comparable by the sketch of its new context vector."""
    await work.sketches.put(task.name, _key(task), numbers)


async def warm_start(work: UnitOfWork, task: Task, round_: Round) -> bytes | None:
    """The body of version 0 taken from the task that `task.warm_start` names, which then says which it was; None for a cold start.

    Raises:
        WrongState: the task it names is not finished, or runs on another model, other layers or other groups.
    """
    if task.warm_start is None:
        return None
    source: str | None = task.warm_start
    if source == NEAREST:
        key, numbers = await work.sketches.find(task.name) or (_key(task), [])
        found = await work.sketches.nearest(task.name, key, numbers, 1)
        source = found[0][0] if found else None
    task.warm_start = source
    return None if source is None else await _taken(work, task, source, round_)


async def _taken(work: UnitOfWork, task: Task, source: str, round_: Round) -> bytes:
    try:
        other = await work.tasks.get(source)
    except UnknownTask as gone:
        raise WrongState(f"{gone.detail} to start from") from gone
    if other.state is not TaskState.FINISHED or other.served is None:
        raise WrongState(f"task {source!r} is {other.state}; a warm start takes the coefficients of a finished task")
    if _key(other) != _key(task):
        raise WrongState(f"task {source!r} runs on another model, other layers or other groups than task {task.name!r}")
    values = read_coefficients(TensorBody.from_bytes(await work.aggregates.coefficients_body(source, other.served))).values
    said = {"task": task.name, "round": round_.number, "examples": 0, "warm_start": f"{source}@{other.served}"}
    return TensorBody({"coefficients": values}, said).to_bytes()


def _key(task: Task) -> str:
    if task.spec.identity is None:
        raise WrongState(f"nobody joined task {task.name!r} yet")
    layout = task.spec.layout(task.spec.identity)
    return comparison_key(task.spec.identity.fingerprint, layout.layers, layout.groups)
