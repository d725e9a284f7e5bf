"""The JSON messages between the aggregator, its clients and its admins. Knows no web framework and no torch."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Generic, TypeVar

from pydantic import BaseModel, Field

from ifed.probes import Probe
from ifed.rules import Mode
from ifed.states import AssignmentKind, RoundKind, RoundState, TaskState
from ifed.tasks import Label, LayerChoice, Layout, Message, ModelIdentity, Name, Policy, TaskSpec

Item = TypeVar("Item")
MOST = 1_000_000_000  # of anything that is counted


class ErrorBody(BaseModel):
    """What every refusal looks like. `error` names the class in `ifed.errors`."""

    error: str = Field(examples=["RoundClosed"])
    detail: str = Field(examples=["round 3 of task 'sentiment' closed at 12:00:41; ask for the current assignment"])


class TaskChanges(Message):
    """What an admin may change of a task that has not started."""

    labels: list[Label] | None = None
    template: str | None = None
    chat: bool | None = None
    model: str | None = None
    layers: LayerChoice | None = None
    groups: int | None = None
    policy: Policy | None = None


class Evaluation(Message):
    """How a version of the coefficients did on all clients' held-out examples."""

    version: int
    accuracy: float
    macro_f1: float
    examples: int


class ClientProgress(Message):
    """One client's part in a round."""

    client: Name
    contributed_at: datetime | None = None
    examples: int | None = None
    bytes_up: int | None = None
    loss: float | None = None
    accuracy: float | None = Field(None, description="of the evaluated version on this client's held-out examples")
    seconds: float | None = Field(None, description="how long the client says it worked")


class RoundInfo(Message):
    """A round as its admins see it."""

    task: Name
    number: int
    kind: RoundKind
    state: RoundState
    opened_at: datetime
    deadline: datetime
    closed_at: datetime | None = None
    expected: list[Name]
    missing: list[Name]
    clients: list[ClientProgress]
    version: int | None = Field(None, description="the coefficients this round started from")
    context: int | None = Field(None, description="the context vector this round works with")
    produced: int | None = Field(None, description="the coefficients this round made")
    loss: float | None = None
    evaluation: Evaluation | None = None
    reason: str | None = Field(None, description="why it failed or was cancelled")
    attempt: int = Field(1, description="counts the rounds that stood for the same step, failed ones before it")


class Extension(Message):
    """More time for an open round."""

    seconds: float = Field(gt=0, le=31_536_000, allow_inf_nan=False, description="added to the round's deadline")


class Member(Message):
    """A client that joined a task."""

    client: Name
    joined_at: datetime
    label_counts: dict[str, int]
    holdout: int


class TaskInfo(Message):
    """A task as its admins see it."""

    spec: TaskSpec
    state: TaskState
    created_at: datetime
    identity: ModelIdentity | None
    layout: Layout | None
    members: list[Member]
    round: RoundInfo | None = Field(None, description="the newest round")
    version: int | None = Field(None, description="the newest coefficients")
    served: int | None = Field(None, description="the version the adapter endpoint gives")
    context: int | None = Field(None, description="the newest context vector, which the adapter endpoint gives with it")
    evaluations: list[Evaluation]
    reason: str | None = Field(None, description="why it failed or stopped early")
    warm_start: Name | None = Field(None, description="the task whose coefficients its version 0 is")


class JoinRequest(Message):
    """What a client says of itself: no text, only counts."""

    identity: ModelIdentity
    label_counts: dict[str, Annotated[int, Field(ge=0, le=MOST)]] = Field(description="training examples by label")
    holdout: int = Field(ge=0, le=MOST, description="held-out examples")
    probe: Probe = Field(description="what the client's model does with public texts in the task's template")


class TaskBrief(Message):
    """What a client must know of a task to work on it."""

    name: Name
    labels: list[str]
    template: str
    chat: bool = False
    model: str
    identity: ModelIdentity | None
    layout: Layout | None
    layers: LayerChoice
    groups: int
    policy: Policy


class LocalWork(Message):
    """What a client does in a calibration round: its own steps, or in gradient mode the mean gradient over one batch."""

    mode: Mode = "coefficients"
    steps: int
    batch_size: int
    learning_rate: float
    learning_rate_end: float
    weight_decay: float
    logit_adjustment: float
    seed: int = Field(description="the same for every client; each mixes in its own name")


class Assignment(Message):
    """What a client should do next. `wait` says ask again; `done` says the task has ended, and how; `withdrawn` says never."""

    kind: AssignmentKind
    task: TaskBrief
    round: int | None = None
    deadline: datetime | None = None
    version: int | None = Field(None, description="the coefficients to start from and to evaluate")
    context_version: int | None = Field(None, description="the context vector to work with: the one of the round")
    context_digest: str | None = Field(None, description="sha256 of the body of GET …/context?version=")
    work: LocalWork | None = None
    client: Name | None = Field(None, description="the client this is for")
    state: TaskState
    reason: str | None = None


class Receipt(Message):
    """A contribution was stored; sending it again gives the same receipt."""

    task: Name
    round: int
    client: Name
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    received_at: datetime


class Page(BaseModel, Generic[Item]):
    """One page of a list. `next` is the `after` of the next page, if there is one."""

    items: list[Item]
    next: str | None = None


class ContributionMeta(Message):
    """The metadata entry of a contribution's safetensors body."""

    fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")
    examples: int = Field(ge=0, le=1_000_000_000, description="examples behind the vector or the update: its weight")
    version: int | None = Field(None, description="the coefficients the update started from")
    loss: float | None = Field(None, allow_inf_nan=False)
    seconds: float | None = Field(None, ge=0, allow_inf_nan=False)


class AdapterMeta(Message):
    """What an adapter says of itself; it travels in the metadata of the adapter's body."""

    task: Name
    version: int
    context_version: int = Field(1, description="the context vector it carries; it changes as clients add, join late or withdraw")
    labels: list[str]
    template: str
    chat: bool = False
    identity: ModelIdentity
    layout: Layout
    evaluation: Evaluation | None = None
    label_bias: list[float] | None = Field(
        None, description="log of each label's mean probability over that of its share, to be subtracted from a text's log-scores"
    )
    created_at: datetime
