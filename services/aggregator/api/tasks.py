"""Admin routes for tasks."""

from __future__ import annotations

from fastapi import APIRouter, status

from ifed.errors import (
    AlreadyExists,
    Forbidden,
    Malformed,
    NothingYet,
    Unauthenticated,
    Unavailable,
    UnknownTask,
    UnknownVersion,
    WrongState,
)
from ifed.messages.rounds import (
    Matches,
    MatchRequest,
    Page,
    Rollback,
    Start,
    TaskChanges,
    TaskInfo,
)
from ifed.messages.tasks import TaskSpec
from ifed.server.web import refusals
from services.aggregator.api.dependencies import AdminOnly, After, AggregatorDep, Limit, NamePath

router = APIRouter(
    prefix="/v1", tags=["admin"], dependencies=[AdminOnly], responses=refusals(Unauthenticated, Forbidden, Malformed, Unavailable)
)


@router.post("/tasks", status_code=status.HTTP_201_CREATED, responses=refusals(AlreadyExists, Malformed))
async def create_task(spec: TaskSpec, service: AggregatorDep) -> TaskInfo:
    """Define a task. It stays a draft until it is started; clients may join a draft."""
    return await service.administration.create(spec)


@router.get("/tasks")
async def list_tasks(service: AggregatorDep, after: After = None, limit: Limit = 100) -> Page[TaskInfo]:
    """Tasks by name."""
    return await service.administration.tasks(after, limit)


@router.get("/tasks/{task}", responses=refusals(UnknownTask))
async def get_task(task: NamePath, service: AggregatorDep) -> TaskInfo:
    """One task: its members, its newest round, its evaluations, the version it serves."""
    return await service.administration.task(task)


@router.patch("/tasks/{task}", responses=refusals(UnknownTask, WrongState, Malformed))
async def change_task(task: NamePath, changes: TaskChanges, service: AggregatorDep) -> TaskInfo:
    """Change a draft. After a change of labels or model, clients that joined must join again."""
    return await service.administration.change(task, changes)


@router.delete("/tasks/{task}", status_code=status.HTTP_204_NO_CONTENT, responses=refusals(UnknownTask, WrongState))
async def delete_task(task: NamePath, service: AggregatorDep) -> None:
    """Remove a task that does not run, with its rounds and aggregates."""
    await service.administration.delete(task)


@router.post("/tasks/{task}/start", responses=refusals(UnknownTask, WrongState))
async def start_task(task: NamePath, service: AggregatorDep, how: Start | None = None) -> TaskInfo:
    """Run a draft, or try the failed round of a failed task again; from a finished task's coefficients, if the body says so."""
    return await service.administration.start(task, how)


@router.post("/tasks/{task}/pause", responses=refusals(UnknownTask, WrongState))
async def pause_task(task: NamePath, service: AggregatorDep) -> TaskInfo:
    """Give out no more work; an open round still takes what comes, until its deadline."""
    return await service.administration.pause(task)


@router.post("/tasks/{task}/resume", responses=refusals(UnknownTask, WrongState))
async def resume_task(task: NamePath, service: AggregatorDep) -> TaskInfo:
    """Go on after a pause or a cancelled round."""
    return await service.administration.resume(task)


@router.post("/tasks/{task}/rollback", responses=refusals(UnknownTask, UnknownVersion, WrongState))
async def roll_back(task: NamePath, rollback: Rollback, service: AggregatorDep) -> TaskInfo:
    """Serve an earlier version now; a running task pauses, and goes on from that version when it is resumed."""
    return await service.history.rollback(task, rollback.version)


@router.post("/tasks/match", responses=refusals(UnknownTask, NothingYet))
async def match_tasks(request: MatchRequest, service: AggregatorDep) -> Matches:
    """The finished tasks whose context vectors are most like this task's, on the same model: where a warm start could come from."""
    return await service.matching.match(request)
