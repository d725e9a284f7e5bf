"""Routes for admins: tasks, rounds, enrolment. Each parses, calls, returns."""

from __future__ import annotations

from fastapi import APIRouter, status

from ifed.access import ClientInfo, Enrolment, NewClient
from ifed.contracts import Extension, Page, RoundInfo, TaskChanges, TaskInfo
from ifed.errors import (
    AlreadyExists,
    Forbidden,
    Malformed,
    Unauthenticated,
    Unavailable,
    UnknownClient,
    UnknownRound,
    UnknownTask,
    WrongState,
)
from ifed.history import Start
from ifed.tasks import TaskSpec
from ifed.web import refusals
from services.aggregator.endpoints_access import AdminOnly, AggregatorDep
from services.aggregator.endpoints_parameters import After, AfterNumber, Limit, NamePath, NumberPath

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


@router.get("/tasks/{task}/rounds", responses=refusals(UnknownTask))
async def list_rounds(task: NamePath, service: AggregatorDep, after: AfterNumber = 0, limit: Limit = 100) -> Page[RoundInfo]:
    """Rounds by number, failed and cancelled ones too."""
    return await service.administration.rounds(task, after, limit)


@router.get("/tasks/{task}/rounds/{number}", responses=refusals(UnknownTask, UnknownRound))
async def get_round(task: NamePath, number: NumberPath, service: AggregatorDep) -> RoundInfo:
    """One round: who contributed, who is missing."""
    return await service.administration.round(task, number)


@router.post("/tasks/{task}/rounds/{number}/close", responses=refusals(UnknownTask, UnknownRound, WrongState))
async def close_round(task: NamePath, number: NumberPath, service: AggregatorDep) -> RoundInfo:
    """End an open round now with those who came, quorum or not."""
    return await service.administration.close(task, number)


@router.post("/tasks/{task}/rounds/{number}/cancel", responses=refusals(UnknownTask, UnknownRound, WrongState))
async def cancel_round(task: NamePath, number: NumberPath, service: AggregatorDep) -> RoundInfo:
    """Give an open round up; the task pauses, and resume opens a new round."""
    return await service.administration.cancel(task, number)


@router.post("/tasks/{task}/rounds/{number}/extend", responses=refusals(UnknownTask, UnknownRound, WrongState))
async def extend_round(task: NamePath, number: NumberPath, extension: Extension, service: AggregatorDep) -> RoundInfo:
    """Give an open round more time."""
    return await service.administration.extend(task, number, extension.seconds)


@router.post("/clients", status_code=status.HTTP_201_CREATED, responses=refusals(AlreadyExists))
async def enrol_client(request: NewClient, service: AggregatorDep) -> Enrolment:
    """Enrol a client or a reader. Its token is shown this once."""
    return await service.parties.enrol(request)


@router.get("/clients")
async def list_clients(service: AggregatorDep, after: After = None, limit: Limit = 100) -> Page[ClientInfo]:
    """Enrolled parties by name, revoked ones too."""
    return await service.parties.page(after, limit)


@router.delete("/clients/{client}", status_code=status.HTTP_204_NO_CONTENT, responses=refusals(UnknownClient))
async def revoke_client(client: NamePath, service: AggregatorDep) -> None:
    """End a party's token at once; open rounds stop waiting for it."""
    await service.parties.revoke(client)


@router.post("/clients/{client}/rotate", responses=refusals(UnknownClient, WrongState))
async def rotate_token(client: NamePath, service: AggregatorDep) -> Enrolment:
    """Give a party a new token; the old one ends at once."""
    return await service.parties.rotate(client)
