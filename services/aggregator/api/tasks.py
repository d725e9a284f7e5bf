"""Admin routes for tasks."""

from __future__ import annotations

from fastapi import APIRouter, status

from ifed.errors import (
    AlreadyExists,
    BodyTimeout,
    Forbidden,
    Malformed,
    NothingYet,
    Overloaded,
    TooLarge,
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
from services.aggregator.api.dependencies import AdminOnly, After, Limit, NamePath, PartyRoute, SimilarityDep, TasksDep

router = APIRouter(
    route_class=PartyRoute,
    prefix="/v1",
    tags=["admin"],
    dependencies=[AdminOnly],
    responses=refusals(Unauthenticated, Forbidden, Malformed, BodyTimeout, TooLarge, Overloaded, Unavailable),
)


@router.post("/tasks", status_code=status.HTTP_201_CREATED, responses=refusals(AlreadyExists, Malformed))
async def create_task(spec: TaskSpec, tasks: TasksDep) -> TaskInfo:
    """Create a task. It is a draft until it is started; clients may join a draft."""
    return await tasks.create(spec)


@router.get("/tasks")
async def list_tasks(tasks: TasksDep, after: After = None, limit: Limit = 100) -> Page[TaskInfo]:
    """List tasks by name."""
    return await tasks.page(after, limit)


@router.get("/tasks/{task}", responses=refusals(UnknownTask))
async def get_task(task: NamePath, tasks: TasksDep) -> TaskInfo:
    """Return a task: its members, its newest round, its evaluations and the version it serves."""
    return await tasks.get(task)


@router.patch("/tasks/{task}", responses=refusals(UnknownTask, WrongState, Malformed))
async def change_task(task: NamePath, changes: TaskChanges, tasks: TasksDep) -> TaskInfo:
    """Change a draft, or in any state `abstain_below` alone, which serving follows at once.

    After a change of labels, model or template, clients that joined must join again.
    """
    return await tasks.change(task, changes)


@router.delete("/tasks/{task}", status_code=status.HTTP_204_NO_CONTENT, responses=refusals(UnknownTask, WrongState))
async def delete_task(task: NamePath, tasks: TasksDep) -> None:
    """Delete a task that is not running, with its rounds and aggregates."""
    await tasks.delete(task)


@router.post("/tasks/{task}/start", responses=refusals(UnknownTask, WrongState))
async def start_task(task: NamePath, tasks: TasksDep, how: Start | None = None) -> TaskInfo:
    """Run a draft, or retry the failed round of a failed task. The body can ask for a warm start."""
    return await tasks.start(task, how)


@router.post("/tasks/{task}/pause", responses=refusals(UnknownTask, WrongState))
async def pause_task(task: NamePath, tasks: TasksDep) -> TaskInfo:
    """Give out no more work; an open round accepts contributions until its deadline."""
    return await tasks.pause(task)


@router.post("/tasks/{task}/resume", responses=refusals(UnknownTask, WrongState))
async def resume_task(task: NamePath, tasks: TasksDep) -> TaskInfo:
    """Continue after a pause or a cancelled round."""
    return await tasks.resume(task)


@router.post("/tasks/{task}/rollback", responses=refusals(UnknownTask, UnknownVersion, WrongState))
async def roll_back(task: NamePath, rollback: Rollback, tasks: TasksDep) -> TaskInfo:
    """Serve an earlier version at once; a running task pauses, and continues from that version when it is resumed."""
    return await tasks.rollback(task, rollback.version)


@router.post("/tasks/match", responses=refusals(UnknownTask, NothingYet))
async def match_tasks(request: MatchRequest, similarity: SimilarityDep) -> Matches:
    """List the finished tasks on the same model whose context vectors are most similar: where a warm start could begin."""
    return await similarity.match(request)
