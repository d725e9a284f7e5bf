"""Find finished tasks that are similar to a new one, and start it from their coefficients.

"Application optimisation" of arXiv 2511.06757: tasks with similar context vectors have similar coefficients.
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
    """Compare tasks by the sketches of their context vectors."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies

    async def match(self, request: MatchRequest) -> Matches:
        """Return finished tasks by the similarity of their context vectors, the most similar first.

        Raises:
            NothingYet: the task has no context vector.
        """
        async with self._dependencies.database.read_only() as work:
            await work.tasks.get(request.task)
            if (stored := await work.sketches.find(request.task)) is None:
                raise NothingYet(f"task {request.task!r} has no context vector before its first round closes")
            key, sketch = stored
            similarities = await work.sketches.nearest(request.task, key, sketch, request.limit)
            return Matches(items=[await _match(work, name, similarity) for name, similarity in similarities])


async def _match(work: UnitOfWork, name: str, similarity: float) -> Match:
    task = await work.tasks.get(name)
    assert task.served is not None, "only tasks that serve a version are matched"
    return Match(
        task=name,
        similarity=similarity,
        version=task.served,
        labels=task.spec.labels,
        evaluation=await _evaluation(work, task, task.served),
    )


async def _evaluation(work: UnitOfWork, task: Task, version: int) -> Evaluation | None:
    result = dict(await work.rounds.evaluations(task.name, labels=True)).get(version)
    return None if result is None else messages.evaluation(version, result, task.spec.labels)


async def store_sketch(work: UnitOfWork, task: Task, sketch: Sequence[float]) -> None:
    """Store the sketch of a task's new context vector."""
    await work.sketches.put(task.name, _key(task), sketch)


async def warm_start(work: UnitOfWork, task: Task, round_: Round) -> bytes | None:
    """Return the body of version 0 for a warm start, and set `task.warm_start` to its source; None for a cold start.

    Raises:
        WrongState: the task to start from is not finished, or runs on another model, other layers or other groups.
    """
    if task.warm_start == NEAREST:
        key, sketch = await work.sketches.find(task.name) or (_key(task), [])
        nearest = await work.sketches.nearest(task.name, key, sketch, 1)
        task.warm_start = nearest[0][0] if nearest else None
    return None if task.warm_start is None else await _coefficients_from(work, task, task.warm_start, round_)


async def _coefficients_from(work: UnitOfWork, task: Task, source: str, round_: Round) -> bytes:
    try:
        other = await work.tasks.get(source)
    except UnknownTask as missing:
        raise WrongState(f"{missing.detail} to start from") from missing
    if other.state is not TaskState.FINISHED or other.served is None:
        raise WrongState(f"task {source!r} is {other.state}; a warm start takes the coefficients of a finished task")
    if _key(other) != _key(task):
        raise WrongState(f"task {source!r} runs on another model, other layers or tokens, or other groups than task {task.name!r}")
    values = read_coefficients(TensorBody.from_bytes(await work.aggregates.coefficients_body(source, other.served))).values
    metadata = {"task": task.name, "round": round_.number, "examples": 0, "warm_start": f"{source}@{other.served}"}
    return TensorBody({"coefficients": values}, metadata).to_bytes()


def _key(task: Task) -> str:
    """Return what two tasks must share to be comparable."""
    if task.spec.identity is None:
        raise WrongState(f"nobody joined task {task.name!r} yet")
    layout = task.spec.layout(task.spec.identity)
    return comparison_key(task.spec.identity.fingerprint, layout.layers, layout.groups, task.spec.injection)
