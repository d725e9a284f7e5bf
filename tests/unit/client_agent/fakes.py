"""An aggregator that follows a script, a model that answers at once, and an agent with both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from ifed.messages.bodies import HeldOutCounts
from ifed.messages.enums import AssignmentKind, TaskState
from ifed.messages.rounds import Assignment, JoinRequest, LocalWork, Member, Reading, Receipt, TaskBrief
from ifed.messages.tasks import Layout, ModelIdentity, Policy
from ifed.messages.texts import LabelledText
from ifed.tensors.confidence import ConfidenceBin, ConfidenceBins
from ifed.tensors.probes import Probe
from ifed.tensors.regression import LabelHead
from ifed.tensors.values import Coefficients, ContextVector, Gradient, digest_of
from services.client_agent.agent import Agent
from services.client_agent.demonstrations import Split
from services.client_agent.limits import Limits
from services.client_agent.participation import Participant
from services.client_agent.state import AgentState, DataFileWatcher, ReleasedTexts
from services.client_agent.status import Status
from testing.factories import probe

LIMITS = Limits(rounds=24, steps=8, batch_size=32, labels=3, examples=1)
IDENTITY = ModelIdentity(name="tiny", fingerprint="ab" * 32, family="llama", num_layers=2, hidden_size=4)
LAYOUT = Layout(layers=[0, 1], hidden_size=4, groups=2)
SPLIT = Split(tuple(LabelledText(f"t{n}", n % 2) for n in range(6)), (LabelledText("h", 1),))
CONFIDENCE = ConfidenceBins((ConfidenceBin(),) * 7 + (ConfidenceBin(1, 1, 0.75), ConfidenceBin(), ConfidenceBin()))
WORK = LocalWork(steps=2, batch_size=2, learning_rate=0.1, learning_rate_end=0.05, weight_decay=0, logit_adjustment=1, seed=7)


def brief(**policy: object) -> TaskBrief:
    """Return a task whose context vector takes three demonstrations of a client, unless `policy` says otherwise."""
    return TaskBrief(
        name="sentiment",
        labels=["no", "yes"],
        template="{text}:",
        model="tiny",
        identity=IDENTITY,
        layout=LAYOUT,
        layers="all",
        groups=2,
        policy=Policy.model_validate({"max_demonstrations": 3, "update_dtype": "float32"} | policy),
    )


def assignment(
    kind: AssignmentKind,
    round_: int | None = None,
    *,
    task: TaskBrief | None = None,
    version: int = 0,
    work: LocalWork = WORK,
    state: TaskState = TaskState.RUNNING,
) -> Assignment:
    """Return an assignment as the aggregator sends it."""
    scored = kind in (AssignmentKind.CALIBRATION, AssignmentKind.EVALUATION)
    return Assignment(
        kind=kind,
        task=task or brief(),
        round=round_,
        version=version if scored else None,
        context_digest="c",
        work=work if kind is AssignmentKind.CALIBRATION else None,
        state=state,
    )


def whole_task(**policy: object) -> list[Assignment]:
    """Return the assignments of a client from joining to the end of a task with one calibration round."""
    task = brief(**policy)
    return [
        assignment(AssignmentKind.JOIN, task=task),
        assignment(AssignmentKind.CONTEXT, 1, task=task),
        assignment(AssignmentKind.WAIT, task=task),
        assignment(AssignmentKind.CALIBRATION, 2, task=task),
        assignment(AssignmentKind.EVALUATION, 3, task=task),
        assignment(AssignmentKind.DONE, task=task, state=TaskState.FINISHED),
    ]


class FakeAggregator:
    """Return the assignments of a script, raising those that are errors, and record the contributions.

    Attributes:
        submission_errors: raised in their order by the next contributions to a round.
        addition_errors: raised in their order by the next additions.
        join_error: raised by every join.
    """

    def __init__(self, script: Sequence[Assignment | Exception], *, client: str = "me") -> None:
        self.script, self.client = list(script), client
        self.joins: list[JoinRequest] = []
        self.submissions: list[tuple[int, bytes]] = []
        self.additions: list[bytes] = []
        self.submission_errors: list[Exception] = []
        self.addition_errors: list[Exception] = []
        self.join_error: Exception | None = None
        self.bytes_up = self.bytes_down = 0

    async def join(self, task: str, request: JoinRequest) -> Member:
        if self.join_error:
            raise self.join_error
        self.joins.append(request)
        now = datetime.now(UTC)
        return Member(client=self.client, joined_at=now, label_counts=request.label_counts, holdout=request.holdout)

    async def assignment(self, task: str, *, wait: float = 0.0) -> Assignment:
        step = self.script.pop(0)
        if isinstance(step, Exception):
            raise step
        return step.model_copy(update={"client": self.client})

    async def context(self, task: str, *, version: int | None = None) -> ContextVector:
        return ContextVector(np.ones(LAYOUT.context_shape, np.float32))

    async def version(self, task: str, version: int) -> tuple[Coefficients, LabelHead | None]:
        return Coefficients.identity(2, 2), None

    async def submit_context(self, task: str, number: int, body: bytes) -> Receipt:
        self.submissions.append((number, body))
        if self.submission_errors:
            raise self.submission_errors.pop(0)
        return Receipt(task=task, round=number, client=self.client, digest=digest_of(body), received_at=datetime.now(UTC))

    submit_update = submit_context

    async def add_context(self, task: str, body: bytes) -> Receipt:
        self.additions.append(body)
        if self.addition_errors:
            raise self.addition_errors.pop(0)
        return Receipt(task=task, round=1, client=self.client, digest=digest_of(body), received_at=datetime.now(UTC))


class FakeModel:
    """Answers at once and counts its calls.

    Attributes:
        local_steps: what calibration adds to the coefficients.
        condensed: number of demonstrations of each call.
    """

    identity = IDENTITY

    def __init__(self) -> None:
        self.local_steps = np.ones((2, 2, 2, 2), np.float32)
        self.condensed: list[int] = []
        self.seeds: list[int] = []
        self.adopted = 0

    def probe(self, task: TaskBrief) -> Probe:
        return probe()

    def condense(
        self, task: TaskBrief, examples: Sequence[LabelledText[int]], progress: Callable[[int, int], None]
    ) -> ContextVector:
        self.condensed.append(len(examples))
        progress(len(examples), len(examples))
        return ContextVector(np.full(LAYOUT.context_shape, len(self.condensed), np.float32))

    def adopt(self, task: TaskBrief, context: ContextVector, split: Split) -> None:
        self.adopted += 1

    def calibrate(
        self,
        assignment: Assignment,
        coefficients: Coefficients,
        head: LabelHead | None,
        seed: int,
        progress: Callable[[int, int], None],
    ) -> tuple[Coefficients | Gradient, float]:
        self.seeds.append(seed)
        assert assignment.work is not None
        if assignment.work.mode == "gradient":
            return Gradient(np.full_like(coefficients.values, 2.0)), 0.25
        return Coefficients(coefficients.values + self.local_steps), 0.5

    def evaluate(
        self, coefficients: Coefficients, head: LabelHead | None, progress: Callable[[int, int], None], *, every_reading: bool
    ) -> tuple[HeldOutCounts, dict[Reading, HeldOutCounts]]:
        return HeldOutCounts(np.array([[0, 0], [0, 1]], np.int64), np.array([0.25, 0.75], np.float32), confidence=CONFIDENCE), {}


class FakeFederation:
    """One agent, its fakes, and a data file `data` beside its state.

    Attributes:
        split: the result of the next reading of the data file.
        read_error: raised by the next readings of the data file.
        prepared: times that data and model were prepared.
    """

    def __init__(
        self,
        folder: Path,
        script: Sequence[Assignment | Exception],
        *,
        client: str = "me",
        min_examples: int = 1,
        limits: Limits | None = None,
        wait_for_task: bool = False,
    ) -> None:
        self.folder = folder
        self.aggregator, self.model, self.status = FakeAggregator(script, client=client), FakeModel(), Status()
        self.split = SPLIT
        self.read_error: Exception | None = None
        self.prepared = 0
        self.data_file = folder / "data"
        if not self.data_file.exists():
            self.data_file.touch()
        watcher = DataFileWatcher(self.data_file)
        self.state = AgentState(folder, task="sentiment", client=client)

        async def prepare(task: TaskBrief, client: str) -> Participant:
            if self.read_error:
                raise self.read_error
            self.prepared += 1
            return Participant(
                self.aggregator,  # type: ignore[arg-type]
                self.model,  # type: ignore[arg-type]
                self.split,
                self.state,
                ReleasedTexts(folder, task="sentiment", data_file=self.data_file, fewest=min_examples),
                self.status,
                data_file=watcher.signature(),
            )

        self.prepare = prepare
        self.agent = Agent(
            self.aggregator,  # type: ignore[arg-type]
            prepare,
            self.status,
            task="sentiment",
            wait=0,
            limits=LIMITS if limits is None else limits,
            wait_for_task=wait_for_task,
            has_new_data=lambda _client: watcher.has_new_data(self.state),
        )

    def append_to_data_file(self, *texts: str) -> None:
        """Add rows to the data file, which the next reading returns as training examples."""
        self.data_file.write_text("\n".join(texts))
        self.split = Split(SPLIT.training + tuple(LabelledText(text, 0) for text in texts), SPLIT.holdout)
