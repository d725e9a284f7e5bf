"""The agent's status page, for its operator."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

from services.client_agent.status import Activity, Status


class AgentStatus(BaseModel):
    """The agent's present activity, in counts and states; never text."""

    task: str
    activity: Activity
    done: int = Field(description="steps of the present activity that are done, out of `total`")
    total: int
    round: int | None
    note: str
    training: int = Field(description="training examples")
    holdout: int = Field(description="held-out examples")
    bytes_up: int
    bytes_down: int
    contributions: int
    since: float = Field(description="Unix time at which the present activity began")


def _status(request: Request) -> Status:
    status: Status = request.app.state.status
    return status


StatusDep = Annotated[Status, Depends(_status)]
router = APIRouter(tags=["status"])


@router.get("/v1/status")
async def read_status(request: Request, status: StatusDep) -> AgentStatus:
    """Return the agent's present activity."""
    return AgentStatus.model_validate({"task": request.app.state.task} | {name: getattr(status, name) for name in status.__slots__})
