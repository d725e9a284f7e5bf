"""One assignment turned into one contribution. Knows the aggregator and the model as protocols; no torch, no loop."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from ifed.clients.aggregator import AggregatorClient
from ifed.errors import AlreadyContributed, RoundClosed, StaleUpdate, WrongState
from ifed.messages.bodies import ContextBody, UpdateBody
from ifed.messages.enums import AssignmentKind
from ifed.messages.rounds import Assignment, ContributionMeta, JoinRequest, TaskBrief
from ifed.messages.tasks import ModelIdentity
from ifed.tensors.probes import Probe
from ifed.tensors.values import Coefficients, ContextVector, Float32, Gradient, Int64, digest_of
from services.client_agent.demonstrations import Demonstration, Split
from services.client_agent.state import ErrorFeedback, Memory, Outbox
from services.client_agent.status import Activity, Status

log = structlog.get_logger(__name__)
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Calibrated:
    """Outcome of one round's work: the client's own Λ, or in gradient mode the mean gradient, and the mean training loss."""

    coefficients: Coefficients | None
    loss: float
    gradient: Gradient | None = None


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A version on the held-out examples: confusion counts, and the mean probability of each label, float32, shape (labels,)."""

    confusion: Int64
    label_probabilities: Float32 | None = None


class Model(Protocol):
    """The frozen model at work on this organisation's examples. Blocking; called in a thread of its own."""

    @property
    def identity(self) -> ModelIdentity: ...
    def probe(self, task: TaskBrief) -> Probe: ...
    def condense(self, task: TaskBrief, examples: Sequence[Demonstration], progress: Progress) -> ContextVector: ...
    def adopt(self, task: TaskBrief, context: ContextVector, split: Split) -> None: ...
    def calibrate(self, assignment: Assignment, coefficients: Coefficients, seed: int, progress: Progress) -> Calibrated: ...
    def evaluate(self, coefficients: Coefficients, progress: Progress) -> Evaluated: ...


class Participation:
    """This organisation's part in one task.

    Args:
        memory: what was condensed and sent before.
        feedback: what compact updates lacked before.
        file: state of the data file that `split` was read from.
    """

    def __init__(
        self,
        aggregator: AggregatorClient,
        worker: Model,
        split: Split,
        outbox: Outbox,
        status: Status,
        memory: Memory,
        feedback: ErrorFeedback,
        *,
        file: Sequence[int] = (),
    ) -> None:
        self._aggregator, self._worker, self._split = aggregator, worker, split
        self._memory, self._feedback, self._file = memory, feedback, file
        self._outbox, self._status, self._client = outbox, status, ""
        self._adopted: str | None = None

    async def join(self, task: TaskBrief) -> None:
        """Tell the aggregator which model is here, what it does with public texts, and how many examples of each label; no text."""
        probe = await asyncio.to_thread(self._worker.probe, task)
        member = await self._aggregator.join(
            task.name,
            JoinRequest(
                identity=self._worker.identity,
                label_counts=self._split.label_counts(task.labels),
                holdout=len(self._split.holdout),
                probe=probe,
            ),
        )
        self._client = member.client
        self._outbox.belong_to(member.client)
        log.info("joined", task=task.name, training=len(self._split.training), holdout=len(self._split.holdout))

    async def contribute(self, assignment: Assignment) -> None:
        """Do the work of an assignment and send it; work already done for it before a restart is sent as it is.

        A round that went on without us is no error: the next assignment says what counts now.
        """
        assert assignment.round is not None
        key = self._key(assignment)
        body = self._outbox.find(assignment.round, key)
        if body is None:
            body = await self._work(assignment)
            self._outbox.keep(assignment.round, key, body)
        examples = self._demonstrations(assignment.task)
        gathers = assignment.kind is AssignmentKind.CONTEXT
        if gathers:
            self._memory.begin(body, examples, round_=assignment.round)
        received = True
        try:
            await self._send(assignment, assignment.round, body)
        except (RoundClosed, StaleUpdate, AlreadyContributed) as refusal:
            received = False
            log.warning("contribution refused", round=assignment.round, error=type(refusal).__name__, detail=refusal.detail)
        if gathers:
            self._memory.settle(digest_of(body), received=received, file=self._file)
        self._feedback.settle(assignment.round, received=received)
        self._outbox.forget(assignment.round)

    @property
    def waits(self) -> bool:
        """Whether something was sent that the aggregator could not take yet."""
        return self._memory.waits

    async def add(self, task: TaskBrief, *, first: bool = False) -> None:
        """Send what the task's context vector does not have of this organisation: the `first` demonstrations, or what is new in the file.

        An addition whose answer never came is sent again as the same bytes, which the aggregator counts once.
        """
        if await self._send_again(task.name) or self._memory.waits:
            return
        if first:
            self._memory.forget()
        most = max(0, task.policy.max_demonstrations - self._memory.count)
        if not (new := self._memory.new_among(self._split.training)[:most]):
            self._memory.saw(self._file)
            return
        began = time.monotonic()
        self._status.begin(Activity.CONDENSING)
        vector = await asyncio.to_thread(self._worker.condense, task, new, self._status.progress)
        meta = ContributionMeta(
            fingerprint=self._worker.identity.fingerprint, examples=len(new), seconds=round(time.monotonic() - began, 3)
        )
        self._memory.intend(ContextBody(vector, meta).to_bytes(), new)
        await self._send_again(task.name)

    async def _send_again(self, task: str) -> int:
        """Send whatever waits for its answer; how many of them the aggregator has now."""
        received = 0
        for digest, round_, body in self._memory.unsettled():
            self._status.begin(Activity.SENDING)
            try:
                await (
                    self._aggregator.add_context(task, body)
                    if round_ is None
                    else self._aggregator.submit_context(task, round_, body)
                )
            except WrongState as refusal:
                log.info("addition waits", detail=refusal.detail)
            except (RoundClosed, AlreadyContributed) as refusal:
                self._memory.settle(digest, received=False, file=self._file)
                log.warning("addition refused", error=type(refusal).__name__, detail=refusal.detail)
            else:
                received += 1
                self._status.contributions += 1
                self._memory.settle(digest, received=True, file=self._file)
                log.info("received", digest=digest, bytes=len(body))
        return received

    def _demonstrations(self, task: TaskBrief) -> Sequence[Demonstration]:
        return self._split.training[: task.policy.max_demonstrations]

    def _key(self, assignment: Assignment) -> str:
        """Identifies what a contribution was made from: the assignment, the model and the examples."""
        examples = hashlib.sha256(repr((self._split.training, self._split.holdout)).encode("utf-8", "surrogatepass")).hexdigest()
        said = assignment.model_dump_json(exclude={"deadline", "state", "reason"})
        return hashlib.sha256(f"{said}\n{self._worker.identity.fingerprint}\n{examples}".encode()).hexdigest()

    async def _work(self, assignment: Assignment) -> bytes:
        began = time.monotonic()
        match assignment.kind:
            case AssignmentKind.CONTEXT:
                body = await self._context(assignment, began)
            case AssignmentKind.CALIBRATION | AssignmentKind.EVALUATION:
                body = await self._update(assignment, began)
            case other:
                raise ValueError(f"{other} asks for no contribution")
        log.info(
            "worked", kind=assignment.kind, round=assignment.round, seconds=round(time.monotonic() - began, 2), bytes=len(body)
        )
        return body

    async def _context(self, assignment: Assignment, began: float) -> bytes:
        examples = self._demonstrations(assignment.task)
        self._status.begin(Activity.CONDENSING, round_=assignment.round)
        vector = await asyncio.to_thread(self._worker.condense, assignment.task, examples, self._status.progress)
        return ContextBody(vector, self._meta(assignment, began, examples=len(examples))).to_bytes()

    async def _update(self, assignment: Assignment, began: float) -> bytes:
        assert assignment.version is not None
        task = assignment.task
        if assignment.context_digest != self._adopted:
            context = await self._aggregator.context(task.name, version=assignment.context_version)
            await asyncio.to_thread(self._worker.adopt, task, context, self._split)
            self._adopted = assignment.context_digest
        start = await self._aggregator.coefficients(task.name, version=assignment.version)
        self._status.begin(Activity.EVALUATING, round_=assignment.round)
        found = await asyncio.to_thread(self._worker.evaluate, start, self._status.progress)
        means = found.label_probabilities if task.policy.label_bias else None
        if assignment.kind is AssignmentKind.EVALUATION:
            meta = self._meta(assignment, began, examples=len(self._split.holdout))
            return UpdateBody(None, found.confusion, meta, label_probabilities=means).to_bytes()
        self._status.begin(Activity.CALIBRATING, round_=assignment.round)
        seed = self._seed(assignment)
        mine = await asyncio.to_thread(self._worker.calibrate, assignment, start, seed, self._status.progress)
        meta = self._meta(assignment, began, examples=len(self._split.training), loss=mine.loss)
        values, change = self._feedback.compact(mine.coefficients, start, assignment)
        return UpdateBody(
            values, found.confusion, meta, gradient=mine.gradient, change=change, label_probabilities=means
        ).to_bytes()

    def _seed(self, assignment: Assignment) -> int:
        """The task's seed of the round with this client's name mixed in, so that clients draw different batches."""
        assert assignment.work is not None
        return int.from_bytes(hashlib.sha256(f"{assignment.work.seed}/{self._client}".encode()).digest()[:7], "big")

    def _meta(self, assignment: Assignment, began: float, *, examples: int, loss: float | None = None) -> ContributionMeta:
        return ContributionMeta(
            fingerprint=self._worker.identity.fingerprint,
            examples=examples,
            version=assignment.version,
            loss=loss,
            seconds=round(time.monotonic() - began, 3),
        )

    async def _send(self, assignment: Assignment, number: int, body: bytes) -> None:
        self._status.begin(Activity.SENDING, round_=number)
        submit = self._aggregator.submit_context if assignment.kind is AssignmentKind.CONTEXT else self._aggregator.submit_update
        receipt = await submit(assignment.task.name, number, body)
        self._status.contributions += 1
        log.info("received", round=number, digest=receipt.digest, bytes=len(body))
