"""Messages between the aggregator, its clients and its admins: tasks, rounds, assignments, the ledger."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, Field, model_validator

from ifed.messages.enums import AssignmentKind, HeadQuestion, HeadState, RoundKind, RoundState, TaskState
from ifed.messages.tasks import (
    HeadChoice,
    InjectionPosition,
    Label,
    LayerChoice,
    Layout,
    Message,
    Mode,
    ModelIdentity,
    Name,
    Policy,
    TaskSpec,
)
from ifed.tensors.probes import Probe

Item = TypeVar("Item")
MOST = 1_000_000_000  # of anything that is counted


class ErrorBody(BaseModel):
    """The body of every refusal; `error` names its class in `ifed.errors`."""

    error: str = Field(examples=["RoundClosed"])
    detail: str = Field(examples=["round 3 of task 'sentiment' closed at 12:00:41; ask for the current assignment"])


class TaskChanges(Message):
    """Changes of a task that has not started; `abstain_below` alone can be changed at any time."""

    labels: list[Label] | None = None
    template: str | None = None
    chat: bool | None = None
    model: str | None = None
    layers: LayerChoice | None = None
    groups: int | None = None
    head: HeadChoice | None = None
    injection: InjectionPosition | None = None
    abstain_below: float | None = Field(None, ge=0, le=1, description="0 gives every text a label")
    policy: Policy | None = None


Reading = Literal["words", "head", "both"]


class ReadingResult(Message):
    """One way of reading the labels of a version, evaluated on the held-out examples of all clients."""

    reading: Reading
    accuracy: float
    macro_f1: float
    log_likelihood: float = Field(description="mean log-probability of the true label")
    expected_calibration_error: float | None = Field(None, description="as of the version")


class LabelEvaluation(Message):
    """How well one label is recognised."""

    label: str
    texts: int = Field(description="held-out texts with this label")
    predicted: int = Field(description="held-out texts that got this label")
    precision: float | None = Field(description="share of `predicted` that is right; null if nothing got this label")
    recall: float | None = Field(description="share of `texts` that got this label; null if no text has it")


class ThresholdResult(Message):
    """What a version would do with the held-out texts if its task abstained below a probability."""

    abstain_below: float
    answered: float = Field(description="share of the held-out texts whose highest probability is at least that")
    accuracy: float | None = Field(description="among those; null if there is none")


class Evaluation(Message):
    """The evaluation of a version of the coefficients on the held-out examples of all clients."""

    version: int
    accuracy: float
    macro_f1: float
    examples: int
    log_likelihood: float | None = Field(None, description="mean log-probability of the true label")
    reading: Reading | None = Field(None, description="what was read: the label words, the label head, or the mean of both")
    readings: list[ReadingResult] = Field([], description="of a task with head `auto`: each way of reading the labels")
    expected_calibration_error: float | None = Field(
        None,
        description="mean distance between the highest probability and the accuracy, over ten bins of that probability; of the "
        "probabilities before `label_bias` is subtracted; null where a client did not report its bins",
    )
    thresholds: list[ThresholdResult] | None = Field(
        None, description="of the same probabilities: what would be answered, and how well; null as above, and in adapters"
    )
    labels: list[LabelEvaluation] | None = Field(
        None,
        description="precision and recall of each label, in the order of the task's labels; null in lists of tasks or rounds, in adapters, "
        "and for rounds that an earlier release closed",
    )


class ClientProgress(Message):
    """The progress of one client in a round."""

    client: Name
    contributed_at: datetime | None = None
    examples: int | None = None
    bytes_up: int | None = None
    loss: float | None = None
    accuracy: float | None = Field(None, description="of the evaluated version on this client's held-out examples")
    seconds: float | None = Field(None, description="how long the client says it worked")


class RoundInfo(Message):
    """A round, for admins."""

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
    question: HeadQuestion | None = Field(None, description="of a head round: what it asks")
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


class Withdrawal(Message):
    """The withdrawal of a client from a task."""

    task: Name
    client: Name
    withdrawn_at: datetime


class TaskInfo(Message):
    """A task, for admins."""

    spec: TaskSpec
    state: TaskState
    created_at: datetime
    identity: ModelIdentity | None
    layout: Layout | None
    members: list[Member]
    withdrawn: list[Withdrawal] = Field([], description="clients that joined and were withdrawn")
    round: RoundInfo | None = Field(None, description="the newest round")
    version: int | None = Field(None, description="the newest coefficients")
    served: int | None = Field(None, description="the version the adapter endpoint gives")
    context: int | None = Field(None, description="the newest context vector, which the adapter endpoint gives with it")
    evaluations: list[Evaluation]
    reason: str | None = Field(None, description="why it failed or stopped early")
    warm_start: Name | None = Field(None, description="the task whose coefficients its version 0 is")


class JoinRequest(Message):
    """The request to join a task: identity and probe of the model, and counts per label, but no text."""

    identity: ModelIdentity
    label_counts: dict[str, Annotated[int, Field(ge=0, le=MOST)]] = Field(description="training examples by label")
    holdout: int = Field(ge=0, le=MOST, description="held-out examples")
    probe: Probe = Field(description="what the client's model does with public texts in the task's template")


class TaskBrief(Message):
    """What a client needs to know about a task to work on it."""

    name: Name
    labels: list[str]
    template: str
    chat: bool = False
    model: str
    identity: ModelIdentity | None
    layout: Layout | None
    layers: LayerChoice
    groups: int
    head: HeadChoice = "words"
    injection: InjectionPosition = "all_tokens"
    policy: Policy


class LocalWork(Message):
    """The local work of a calibration round: optimiser steps, or in gradient mode the mean gradient over one batch."""

    mode: Mode = "coefficients"
    steps: int
    batch_size: int
    learning_rate: float
    learning_rate_end: float
    weight_decay: float
    logit_adjustment: float
    seed: int = Field(description="the same for every client; each mixes in its own name")


class Assignment(Message):
    """What a client should do next: `wait` means ask again, `done` that the task has ended, `withdrawn` that the client has left it."""

    kind: AssignmentKind
    task: TaskBrief
    round: int | None = None
    deadline: datetime | None = None
    version: int | None = Field(None, description="the coefficients to start from and to evaluate")
    context_version: int | None = Field(None, description="the context vector to work with: the one of the round")
    context_digest: str | None = Field(None, description="sha256 of the body of GET …/context?version=")
    work: LocalWork | None = None
    question: HeadQuestion | None = Field(
        None, description="of a head round: what to answer; GET …/rounds/{number}/query has its tensors"
    )
    confidence: bool = Field(False, description="whether to report the confidence of held-out texts in bins")
    client: Name | None = Field(None, description="the client this is for")
    state: TaskState
    reason: str | None = None


class Receipt(Message):
    """The receipt of a stored contribution; sending the contribution again gives the same receipt."""

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
    version: int | None = Field(None, ge=0, le=MOST, description="the coefficients the update started from")
    loss: float | None = Field(None, ge=-MOST, le=MOST, allow_inf_nan=False)
    seconds: float | None = Field(None, ge=0, le=MOST, allow_inf_nan=False)


class AdapterMeta(Message):
    """The metadata entry of an adapter's safetensors body."""

    task: Name
    version: int
    context_version: int = Field(1, description="the context vector it carries; it changes as clients add, join late or withdraw")
    labels: list[str]
    template: str
    chat: bool = False
    identity: ModelIdentity
    layout: Layout
    evaluation: Evaluation | None = None
    injection: InjectionPosition = "all_tokens"
    reading: Reading = Field("words", description="what to read: the label words, the label head in the body, or the mean of both")
    head: HeadState = HeadState.NONE
    label_bias: list[float] | None = Field(
        None, description="log of each label's mean probability over that of its share, to be subtracted from a text's log-scores"
    )
    abstain_below: float | None = Field(
        None,
        ge=0,
        le=1,
        description="the highest probability, after the label bias is subtracted, below which a text gets no label",
    )
    created_at: datetime


class Rollback(Message):
    """The version to roll a task back to."""

    version: int = Field(ge=0, description="a version of the coefficients; those after it are no longer served or built upon")


class LedgerEntry(Message):
    """A contribution that was answered 2xx, without its content."""

    round: int
    kind: RoundKind
    state: RoundState = Field(description="of its round; what a failed or cancelled round gathered counts for nothing")
    client: Name
    change: int = Field(0, description="of the context vector: the addition it came with; 0 for what came in the round itself")
    withdrawn: bool = Field(
        False, description="it no longer counts in the context vector or the label head, since its client withdrew"
    )
    digest: str = Field(description="sha256 of the body that was sent")
    received_at: datetime
    examples: int
    bytes: int


class Replay(Message):
    """The result of aggregating a closed round again from the ledger, compared with the stored one."""

    round: int
    kind: RoundKind
    contributions: int
    version: int | None = Field(
        None, description="of what the round made: the context vector or the coefficients; none by an evaluation"
    )
    stored: str | None = Field(None, description="sha256 of the aggregate that is kept and served")
    replayed: str | None = Field(None, description="sha256 of the aggregate summed up again")
    altered: list[Name] = Field(description="clients whose stored contribution is no longer what they sent")
    deleted: list[Name] = Field(
        default_factory=list,
        description="clients that withdrew and whose contribution was deleted since, so that nothing can be aggregated again",
    )
    proven: bool = Field(
        description="every contribution is what was sent, and the aggregate and its measure come out as they are kept"
    )


class ContextInfo(Message):
    """One version of a task's context vector."""

    version: int = Field(description="1 is what the context round made")
    digest: str = Field(description="sha256 of the body of GET …/context?version=")
    created_at: datetime
    examples: int = Field(description="demonstrations behind it")
    changes: int = Field(description="additions and withdrawals that it reflects")


class Start(Message):
    """How to start a task."""

    warm_start: bool = Field(False, description="begin from the coefficients of the most similar finished task, where there is one")
    warm_start_from: Name | None = Field(None, description="begin from the coefficients of this finished task")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.warm_start and self.warm_start_from is not None:
            raise ValueError("warm_start takes the most similar task, warm_start_from the one it names; set one of them")
        return self


class MatchRequest(Message):
    """A request for the tasks that are similar to this one."""

    task: Name = Field(description="its first round has closed, so that it has a context vector")
    limit: int = Field(5, ge=1, le=100)


class Match(Message):
    """A finished task on the same model, layers and groups, with the similarity of its context vector."""

    task: Name
    similarity: float = Field(description="estimate of the cosine of the angle between the context vectors, from -1 to 1")
    version: int = Field(description="the coefficients it serves")
    labels: list[str]
    evaluation: Evaluation | None = None


class Matches(Message):
    """Similar finished tasks, the most similar first."""

    items: list[Match]
