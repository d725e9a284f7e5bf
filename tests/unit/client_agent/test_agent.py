"""The agent asks, works and answers until the task is done, whatever happens on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import structlog

from ifed.errors import (
    AlreadyContributed,
    FingerprintMismatch,
    IFedError,
    NotJoined,
    RoundClosed,
    Unauthenticated,
    Unavailable,
    UnknownTask,
)
from ifed.messages.bodies import ContextBody, UpdateBody
from ifed.messages.enums import AssignmentKind, TaskState
from ifed.messages.rounds import Assignment, JoinRequest, LocalWork, Member, Receipt, TaskBrief
from ifed.messages.tasks import Layout, ModelIdentity, Policy
from ifed.tensors.probes import Probe
from ifed.tensors.values import Coefficients, ContextVector, Gradient, digest_of
from services.client_agent.agent import Agent, CannotTakePart
from services.client_agent.demonstrations import Demonstration, Split
from services.client_agent.participation import Calibrated, Evaluated, Participation, Progress
from services.client_agent.state import DataFileWatcher, ErrorFeedback, Outbox
from services.client_agent.status import Activity, Status, Stopping
from testing.factories import probe

IDENTITY = ModelIdentity(name="tiny", fingerprint="ab" * 32, family="llama", num_layers=2, hidden_size=4)
LAYOUT = Layout(layers=[0, 1], hidden_size=4, groups=2)
TASK = TaskBrief(
    name="sentiment",
    labels=["no", "yes"],
    template="{text}:",
    model="tiny",
    identity=IDENTITY,
    layout=LAYOUT,
    layers="all",
    groups=2,
    policy=Policy(max_demonstrations=3),
)
SPLIT = Split(tuple(Demonstration(f"t{n}", n % 2) for n in range(6)), (Demonstration("h", 1),))
WORK = LocalWork(steps=2, batch_size=2, learning_rate=0.1, learning_rate_end=0.05, weight_decay=0, logit_adjustment=1, seed=7)


def assignment(kind: AssignmentKind, round_: int | None = None, *, state: TaskState = TaskState.RUNNING) -> Assignment:
    version = 0 if kind in (AssignmentKind.CALIBRATION, AssignmentKind.EVALUATION) else None
    work = WORK if kind is AssignmentKind.CALIBRATION else None
    return Assignment(kind=kind, task=TASK, round=round_, version=version, context_digest="c", work=work, state=state)


DONE = assignment(AssignmentKind.DONE, state=TaskState.FINISHED)
WHOLE_TASK = [
    assignment(AssignmentKind.JOIN),
    assignment(AssignmentKind.CONTEXT, 1),
    assignment(AssignmentKind.WAIT),
    assignment(AssignmentKind.CALIBRATION, 2),
    assignment(AssignmentKind.EVALUATION, 3),
    DONE,
]


class FakeAggregator:
    """Gives a script of assignments; every entry may be an error instead."""

    def __init__(self, script: Sequence[Assignment | IFedError], *, refusals: Sequence[IFedError] = ()) -> None:
        self.script, self.refusals = list(script), list[Exception](refusals)
        self.joins: list[JoinRequest] = []
        self.sent: list[tuple[int, bytes]] = []
        self.bytes_up = self.bytes_down = 0
        self.join_refusal: IFedError | None = None
        self.name = "me"
        self.additions: list[bytes] = []
        self.addition_refusals: list[Exception] = []

    async def join(self, task: str, request: JoinRequest) -> Member:
        if self.join_refusal:
            raise self.join_refusal
        self.joins.append(request)
        return Member(client=self.name, joined_at=datetime.now(UTC), label_counts=request.label_counts, holdout=request.holdout)

    async def assignment(self, task: str, *, wait: float = 0.0) -> Assignment:
        said = self.script.pop(0)
        if isinstance(said, IFedError):
            raise said
        return said.model_copy(update={"client": self.name})

    async def context(self, task: str, *, version: int | None = None) -> ContextVector:
        return ContextVector(np.ones(LAYOUT.context_shape, np.float32))

    async def coefficients(self, task: str, *, version: int | None = None) -> Coefficients:
        return Coefficients.identity(2, 2)

    async def submit_context(self, task: str, number: int, body: bytes) -> Receipt:
        self.sent.append((number, body))
        if self.refusals:
            raise self.refusals.pop(0)
        return Receipt(task=task, round=number, client="me", digest=digest_of(body), received_at=datetime.now(UTC))

    submit_update = submit_context

    async def add_context(self, task: str, body: bytes) -> Receipt:
        self.additions.append(body)
        if self.addition_refusals:
            raise self.addition_refusals.pop(0)
        return Receipt(task=task, round=1, client="me", digest=digest_of(body), received_at=datetime.now(UTC))


class FakeWorker:
    """Works at once, and counts."""

    identity = IDENTITY

    def probe(self, task: TaskBrief) -> Probe:
        return probe()

    def __init__(self) -> None:
        self.condensed: list[int] = []
        self.seeds: list[int] = []
        self.adopted = self.calibrated = self.evaluated = 0

    def condense(self, task: TaskBrief, examples: Sequence[Demonstration], progress: Progress) -> ContextVector:
        self.condensed.append(len(examples))
        progress(len(examples), len(examples))
        return ContextVector(np.full(LAYOUT.context_shape, len(self.condensed), np.float32))

    def adopt(self, task: TaskBrief, context: ContextVector, split: Split) -> None:
        self.adopted += 1

    def calibrate(self, assignment: Assignment, coefficients: Coefficients, seed: int, progress: Progress) -> Calibrated:
        self.calibrated += 1
        self.seeds.append(seed)
        assert assignment.work is not None
        if assignment.work.mode == "gradient":
            return Calibrated(None, 0.25, Gradient(np.full_like(coefficients.values, 2.0)))
        return Calibrated(Coefficients(coefficients.values + 1), 0.5)

    def evaluate(self, coefficients: Coefficients, progress: Progress) -> Evaluated:
        self.evaluated += 1
        return Evaluated(np.array([[0, 0], [0, 1]], np.int64), np.array([0.25, 0.75], np.float32))


class Setting:
    """An agent with its fakes."""

    def __init__(self, folder: Path, script: Sequence[Assignment | IFedError], *, refusals: Sequence[IFedError] = ()) -> None:
        self.aggregator, self.worker, self.status = FakeAggregator(script, refusals=refusals), FakeWorker(), Status()
        self.prepared = 0

        self.growth, self.split = DataFileWatcher(folder / "data", folder, task="sentiment"), SPLIT

        async def prepare(task: TaskBrief, client: str) -> Participation:
            self.prepared += 1
            outbox, memory = Outbox(folder, task=task.name), self.growth.memory(client)
            feedback = ErrorFeedback(folder, task=task.name, client=client)
            file = self.growth.state()
            return Participation(self.aggregator, self.worker, self.split, outbox, self.status, memory, feedback, file=file)

        self.agent = Agent(self.aggregator, prepare, self.status, task="sentiment", wait=0, grown=self.growth.noticed)


async def test_a_whole_task_is_joined_worked_and_left(tmp_path: Path) -> None:
    setting = Setting(tmp_path, WHOLE_TASK)
    assert await setting.agent.run() is TaskState.FINISHED
    assert [number for number, _ in setting.aggregator.sent] == [1, 2, 3]
    context = ContextBody.from_bytes(setting.aggregator.sent[0][1])
    assert (context.meta.examples, setting.worker.condensed) == (3, [3])
    update = UpdateBody.from_bytes(setting.aggregator.sent[1][1])
    assert update.coefficients is not None
    assert (update.meta.examples, update.meta.loss, update.meta.version) == (6, 0.5, 0)
    evaluation = UpdateBody.from_bytes(setting.aggregator.sent[2][1])
    assert (evaluation.coefficients, evaluation.meta.examples) == (None, 1)
    assert setting.status.activity is Activity.DONE


async def test_in_gradient_mode_the_gradient_travels_instead_of_coefficients(tmp_path: Path) -> None:
    asked = WHOLE_TASK[3].model_copy(update={"work": WORK.model_copy(update={"mode": "gradient"})})
    setting = Setting(tmp_path, [*WHOLE_TASK[:2], asked, DONE])
    await setting.agent.run()
    update = UpdateBody.from_bytes(setting.aggregator.sent[1][1])
    assert update.coefficients is None
    assert update.gradient is not None
    assert (update.gradient.values == 2.0).all()
    assert update.meta.loss == 0.25


@pytest.mark.parametrize("wanted", [True, False])
async def test_label_probabilities_travel_where_the_policy_asks_for_them(tmp_path: Path, wanted: bool) -> None:
    brief = TASK.model_copy(update={"policy": Policy(max_demonstrations=3, label_bias=wanted)})
    setting = Setting(tmp_path, [one.model_copy(update={"task": brief}) for one in WHOLE_TASK])
    await setting.agent.run()
    for _, body in setting.aggregator.sent[1:]:
        scores = UpdateBody.from_bytes(body).label_probabilities
        assert (scores is not None) is wanted
        assert scores is None or scores.tolist() == [0.25, 0.75]


async def compact_changes(folder: Path, script: Sequence[Assignment], **refused: Sequence[IFedError]) -> list[float]:
    """Each update's change at its first place, as the aggregator reads it, of an agent whose int8 cannot hold its steps exactly."""
    brief = TASK.model_copy(update={"policy": Policy(max_demonstrations=3, update_dtype="int8")})
    setting = Setting(folder, [one.model_copy(update={"task": brief}) for one in script], **refused)

    def uneven(assignment: Assignment, start: Coefficients, seed: int, progress: Progress) -> Calibrated:
        setting.worker.calibrated += 1
        steps = np.zeros_like(start.values)
        steps[..., 0], steps[..., 1] = 0.0035, 1.27  # a third of a step of 0.01 is lost round after round
        return Calibrated(Coefficients(start.values + steps), 0.5)

    setting.worker.calibrate = uneven  # type: ignore[method-assign]
    await setting.agent.run()
    bodies = [UpdateBody.from_bytes(body) for number, body in setting.aggregator.sent if number > 1]
    assert all(body.coefficients is None for body in bodies)
    return [float(body.change.restored()[0, 0, 0, 0]) for body in bodies if body.change is not None]


def rounds(*numbers: int) -> list[Assignment]:
    """Calibration rounds, the version going up with them."""
    return [assignment(AssignmentKind.CALIBRATION, number).model_copy(update={"version": number - 2}) for number in numbers]


async def test_what_a_compact_update_lacks_comes_with_the_next_one_also_after_a_restart(tmp_path: Path) -> None:
    before = await compact_changes(tmp_path, [*WHOLE_TASK[:2], *rounds(2), DONE])
    after = await compact_changes(tmp_path, [*rounds(3, 4), DONE])
    assert [*before, *after] == pytest.approx([0.0, 0.01, 0.0])
    assert sum([*before, *after]) == pytest.approx(3 * 0.0035, abs=0.002)


async def test_an_update_that_was_not_received_leaves_what_is_owed_as_it_was(tmp_path: Path) -> None:
    first = await compact_changes(tmp_path, [*WHOLE_TASK[:2], *rounds(2), DONE])
    late = await compact_changes(tmp_path, [*rounds(3), DONE], refusals=[RoundClosed("late")])
    again = await compact_changes(tmp_path, [*rounds(4, 5), DONE])
    assert [*first, *late, *again] == pytest.approx([0.0, 0.01, 0.01, 0.0])


async def test_a_task_that_begins_anew_owes_nothing(tmp_path: Path) -> None:
    await compact_changes(tmp_path, [*WHOLE_TASK[:2], *rounds(2), DONE])
    assert await compact_changes(tmp_path, [*WHOLE_TASK[:2], *rounds(2), DONE]) == [0.0]
    (tmp_path / "sentiment--me" / "lost.safetensors").write_bytes(b"cut off")
    assert await compact_changes(tmp_path, [*rounds(3), DONE]) == [0.0]


async def test_joining_tells_counts_and_the_model_and_no_text(tmp_path: Path) -> None:
    setting = Setting(tmp_path, WHOLE_TASK)
    await setting.agent.run()
    (request,) = setting.aggregator.joins
    assert request == JoinRequest(identity=IDENTITY, label_counts={"no": 3, "yes": 3}, holdout=1, probe=probe())


async def test_the_context_is_fetched_once_for_all_rounds(tmp_path: Path) -> None:
    setting = Setting(tmp_path, WHOLE_TASK)
    await setting.agent.run()
    assert setting.worker.adopted == 1


async def test_work_done_before_a_restart_is_sent_again_byte_for_byte(tmp_path: Path) -> None:
    lost_answer = Setting(tmp_path, WHOLE_TASK[:2], refusals=[Unavailable("gone", retry_after=0)] * 99)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await lost_answer.agent.run()
    restarted = Setting(tmp_path, [WHOLE_TASK[1], DONE])
    await restarted.agent.run()
    assert restarted.aggregator.sent[0] == lost_answer.aggregator.sent[0]
    assert restarted.worker.condensed == []
    assert len(restarted.aggregator.joins) == 1


async def test_kept_work_is_not_sent_for_another_assignment(tmp_path: Path) -> None:
    stopped = Setting(tmp_path, WHOLE_TASK[:2], refusals=[Unavailable("gone", retry_after=0)] * 99)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await stopped.agent.run()
    changed = assignment(AssignmentKind.CONTEXT, 1).model_copy(update={"task": TASK.model_copy(update={"template": "{text}?"})})
    other = Setting(tmp_path, [changed, DONE])
    await other.agent.run()
    assert other.worker.condensed == [3]


async def test_an_agent_says_why_it_ends(tmp_path: Path) -> None:
    setting = Setting(tmp_path, [DONE])
    with structlog.testing.capture_logs() as logged:
        await setting.agent.run()
    assert [line["task"] for line in logged if "has finished" in line["event"]] == ["sentiment"]


async def test_an_unreachable_aggregator_is_asked_again(tmp_path: Path) -> None:
    setting = Setting(tmp_path, [Unavailable("restarting", retry_after=0), *WHOLE_TASK])
    assert await setting.agent.run() is TaskState.FINISHED


async def test_a_task_that_is_not_made_yet_is_waited_for(tmp_path: Path) -> None:
    setting = Setting(tmp_path, [UnknownTask("no task 'sentiment'"), *WHOLE_TASK])
    assert await setting.agent.run() is TaskState.FINISHED


@pytest.mark.parametrize("refusal", [RoundClosed("late"), AlreadyContributed("twice")])
async def test_a_round_that_went_on_without_us_is_no_error(tmp_path: Path, refusal: IFedError) -> None:
    setting = Setting(tmp_path, WHOLE_TASK, refusals=[refusal])
    assert await setting.agent.run() is TaskState.FINISHED


async def test_a_client_that_was_forgotten_joins_again(tmp_path: Path) -> None:
    setting = Setting(tmp_path, [*WHOLE_TASK[:2], *WHOLE_TASK[1:]], refusals=[NotJoined("who?")])
    await setting.agent.run()
    assert len(setting.aggregator.joins) == 2


async def test_another_model_ends_the_agent_with_words(tmp_path: Path) -> None:
    setting = Setting(tmp_path, WHOLE_TASK)
    setting.aggregator.join_refusal = FingerprintMismatch("the task runs abc, you run def")
    with pytest.raises(CannotTakePart, match="the task runs abc"):
        await setting.agent.run()


async def test_a_revoked_token_ends_the_agent(tmp_path: Path) -> None:
    with pytest.raises(CannotTakePart, match="Unauthenticated"):
        await Setting(tmp_path, [Unauthenticated("revoked")]).agent.run()


async def test_a_stopping_agent_drops_its_work_between_two_steps(tmp_path: Path) -> None:
    setting = Setting(tmp_path, WHOLE_TASK)
    setting.status.stop()
    with pytest.raises(Stopping):
        await setting.agent.run()
    assert setting.aggregator.sent == []


async def test_a_task_that_changed_before_its_start_is_prepared_for_anew(tmp_path: Path) -> None:
    turned = assignment(AssignmentKind.JOIN).model_copy(update={"task": TASK.model_copy(update={"labels": ["yes", "no"]})})
    setting = Setting(tmp_path, [assignment(AssignmentKind.JOIN), turned, DONE])
    await setting.agent.run()
    assert setting.prepared == 2
    assert [list(request.label_counts) for request in setting.aggregator.joins] == [["no", "yes"], ["yes", "no"]]


async def test_two_clients_with_files_of_the_same_name_draw_different_batches(tmp_path: Path) -> None:
    seeds = []
    for name in ("north", "south"):
        setting = Setting(tmp_path, WHOLE_TASK)
        setting.aggregator.name = name
        await setting.agent.run()
        seeds += setting.worker.seeds
    assert seeds[0] != seeds[1]


async def test_the_model_is_loaded_once(tmp_path: Path) -> None:
    setting = Setting(tmp_path, WHOLE_TASK)
    await setting.agent.run()
    assert setting.prepared == 1
