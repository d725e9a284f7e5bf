"""Turn one assignment into one contribution, and send it."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import structlog

from ifed.clients import AggregatorClient
from ifed.errors import AlreadyContributed, Malformed, QuotaExceeded, RoundClosed, StaleUpdate, UnreadableAnswer, WrongState
from ifed.messages.bodies import ContextBody, HeadQuery, UpdateBody
from ifed.messages.enums import AssignmentKind, HeadQuestion
from ifed.messages.rounds import Assignment, ContributionMeta, JoinRequest, TaskBrief
from ifed.messages.tasks import resolve_layers
from ifed.messages.texts import LabelledText
from ifed.tensors.regression import LabelHead, Standardization
from ifed.tensors.updates import Update
from ifed.tensors.values import Float32, Gradient
from services.client_agent.demonstrations import Split
from services.client_agent.state import AgentState, ReleasedTexts
from services.client_agent.status import Activity, Status

if TYPE_CHECKING:  # importing torch takes seconds; bad settings and bad data are reported before
    from services.client_agent.model import LocalModel

log = structlog.get_logger(__name__)
MOST_CANDIDATES = 100  # ridges, and temperatures, that one question may compare


class Participant:
    """This organisation as a participant in one task.

    Args:
        aggregator: where contributions go.
        model: the frozen model; its methods block and run in a thread.
        split: the training and the held-out examples.
        state: the contributions of earlier runs.
        released: the texts behind context vectors that were sent.
        status: receives the present activity.
        data_file: signature of the data file that `split` was read from.
    """

    def __init__(
        self,
        aggregator: AggregatorClient,
        model: LocalModel,
        split: Split,
        state: AgentState,
        released: ReleasedTexts,
        status: Status,
        *,
        data_file: Sequence[int] = (),
    ) -> None:
        self._aggregator, self._model, self._split = aggregator, model, split
        self._state, self._status, self._data_file = state, status, data_file
        self._released = released
        self._client = ""
        self._context_digest: str | None = None
        self._standardization: Standardization | None = None
        self._states_of: tuple[int | None, str | None] | None = None

    async def join(self, task: TaskBrief) -> None:
        """Join the task with the model's identity and probe and the number of examples of each label; no text is sent."""
        probe = await asyncio.to_thread(self._model.probe, task)
        member = await self._aggregator.join(
            task.name,
            JoinRequest(
                identity=self._model.identity,
                label_counts=self._split.label_counts(task.labels),
                holdout=len(self._split.holdout),
                probe=probe,
            ),
        )
        self._client = member.client
        log.info("joined", task=task.name, training=len(self._split.training), holdout=len(self._split.holdout))

    async def contribute(self, assignment: Assignment) -> None:
        """Do the work of an assignment and send the result; work finished before a restart is sent as it is.

        A refusal because the round went on without this client is only logged; the next assignment follows.
        """
        assert assignment.round is not None
        key = self._key(assignment)
        is_context = assignment.kind is AssignmentKind.CONTEXT
        demonstrations = self._demonstrations(assignment.task) if is_context else None
        body = self._state.finished(assignment.round, key) or await self._work(assignment)
        if demonstrations is not None:
            self._released.record(demonstrations, self._split, most=assignment.task.policy.max_demonstrations)
        self._state.begin(assignment.round, body, key=key, demonstrations=demonstrations)
        received = True
        try:
            await self._send(assignment, assignment.round, body)
        except (RoundClosed, StaleUpdate, AlreadyContributed) as refusal:
            received = False
            log.warning("contribution refused", round=assignment.round, error=type(refusal).__name__, detail=refusal.detail)
        self._state.settle(assignment.round, body, received=received, data_file=self._data_file)

    @property
    def awaits_answer(self) -> bool:
        """Whether demonstrations were sent that the aggregator could not take yet."""
        return self._state.awaits_answer

    async def add(self, task: TaskBrief, *, first: bool = False) -> None:
        """Add demonstrations to the task's context vector: those of the data file that were not sent yet, as soon as they are enough.

        An addition without an answer is sent again as the same bytes, which the aggregator counts once.

        Args:
            first: the aggregator has no demonstrations of this client; send all that the policy takes.
        """
        if await self._send_unanswered(task.name) or self._state.awaits_answer:
            return
        self._released.adopt(self._state.sent_blocks, self._split, most=task.policy.max_demonstrations)
        if first:
            new = list(self._demonstrations(task))
            self._state.forget_context()
        else:
            room = max(0, task.policy.max_demonstrations - self._state.sent_count)
            unsent = self._state.unsent(self._split.training)
            new = self._released.choose_addition(self._split, unsent, most=room)
            if room and len(new) < len(unsent):
                log.info("texts wait until MIN_EXAMPLES of them can be added", waiting=len(unsent) - len(new))
        if not new:
            self._state.record_nothing_to_send(self._data_file)
            return
        began = time.monotonic()
        self._status.begin(Activity.CONDENSING)
        vector = await asyncio.to_thread(self._model.condense, task, new, self._status.progress)
        meta = ContributionMeta(
            fingerprint=self._model.identity.fingerprint, examples=len(new), seconds=round(time.monotonic() - began, 3)
        )
        self._released.record(new, self._split, most=task.policy.max_demonstrations)
        body = ContextBody(vector, meta, await self._public_statistics(task)).to_bytes()
        self._state.begin(None, body, demonstrations=new)
        await self._send_unanswered(task.name)

    async def _send_unanswered(self, task: str) -> int:
        """Send every context body without an answer, and return how many of them the aggregator has received."""
        received = 0
        for round_, body in self._state.unanswered():
            self._status.begin(Activity.SENDING)
            try:
                receipt = await (
                    self._aggregator.add_context(task, body)
                    if round_ is None
                    else self._aggregator.submit_context(task, round_, body)
                )
            except WrongState as refusal:
                log.info("addition postponed", detail=refusal.detail)
            except (RoundClosed, AlreadyContributed, QuotaExceeded) as refusal:
                self._state.settle(round_, body, received=False, data_file=self._data_file)
                log.warning("addition refused", error=type(refusal).__name__, detail=refusal.detail)
            else:
                received += 1
                self._status.contributions += 1
                self._state.settle(round_, body, received=True, data_file=self._data_file)
                log.info("received", digest=receipt.digest, bytes=len(body))
        return received

    def _demonstrations(self, task: TaskBrief) -> Sequence[LabelledText[int]]:
        most = task.policy.max_demonstrations
        self._released.adopt(self._state.sent_blocks, self._split, most=most)
        return self._released.choose(self._split, most=most)

    def _key(self, assignment: Assignment) -> str:
        """Return what identifies a contribution: a hash of the assignment, the model and the examples."""
        split = f"({_release_0_1_repr(self._split.training)}, {_release_0_1_repr(self._split.holdout)})"
        examples = hashlib.sha256(split.encode("utf-8", "surrogatepass")).hexdigest()
        request = assignment.model_dump_json(exclude={"deadline", "state", "reason"})
        return hashlib.sha256(f"{request}\n{self._model.identity.fingerprint}\n{examples}".encode()).hexdigest()

    async def _work(self, assignment: Assignment) -> bytes:
        began = time.monotonic()
        match assignment.kind:
            case AssignmentKind.CONTEXT:
                body = await self._context(assignment, began)
            case AssignmentKind.HEAD:
                body = await self._head_answer(assignment, began)
            case AssignmentKind.CALIBRATION | AssignmentKind.EVALUATION:
                body = await self._update(assignment, began)
            case other:
                raise ValueError(f"an assignment of kind {other} asks for no contribution")
        log.info(
            "assignment completed",
            kind=assignment.kind,
            round=assignment.round,
            seconds=round(time.monotonic() - began, 2),
            bytes=len(body),
        )
        return body

    async def _context(self, assignment: Assignment, began: float) -> bytes:
        demonstrations = self._demonstrations(assignment.task)
        self._status.begin(Activity.CONDENSING, round_=assignment.round)
        vector = await asyncio.to_thread(self._model.condense, assignment.task, demonstrations, self._status.progress)
        meta = self._meta(assignment, began, examples=len(demonstrations))
        return ContextBody(vector, meta, await self._public_statistics(assignment.task)).to_bytes()

    async def _public_statistics(self, task: TaskBrief) -> Standardization | None:
        """Return the statistics of the final state over public texts, which a task with a label head needs."""
        return None if task.head == "words" else await asyncio.to_thread(self._model.standardization, task)

    async def _adopt(self, assignment: Assignment) -> None:
        """Prepare for rounds with the context vector of the assignment."""
        if assignment.context_digest == self._context_digest:
            return
        task, version = assignment.task, assignment.context_version
        if task.head == "words":
            context = await self._aggregator.context(task.name, version=version)
        else:
            context, self._standardization = await self._aggregator.context_with_standardization(task.name, version=version)
            if self._standardization is not None and len(self._standardization.mean) != self._model.identity.hidden_size:
                raise UnreadableAnswer("the aggregator sent statistics of the final state of another model")
        self._check_shape(task, context.values, "the context vector")
        await asyncio.to_thread(self._model.adopt, task, context, self._split)
        self._context_digest = assignment.context_digest

    async def _head_answer(self, assignment: Assignment, began: float) -> bytes:
        """Answer the question of a head round from the final states of this organisation's texts, computed once for a version."""
        assert assignment.round is not None
        assert assignment.version is not None
        assert assignment.question is not None
        task = assignment.task
        await self._adopt(assignment)
        if self._standardization is None:
            raise Malformed(
                f"the context vector of task {task.name!r} carries no statistics of the final state; its head cannot be solved"
            )
        query = await self._aggregator.query(task.name, assignment.round)
        self._check_query(task, query)
        if self._states_of != (assignment.version, assignment.context_digest):
            self._status.begin(Activity.EVALUATING, round_=assignment.round)
            start, _ = await self._aggregator.version(task.name, assignment.version)
            self._check_shape(task, start.values, "the coefficients")
            await asyncio.to_thread(self._model.compute_states, start, self._standardization)
            self._states_of = (assignment.version, assignment.context_digest)
        held_out = assignment.question is HeadQuestion.LIKELIHOOD
        examples = len(self._split.holdout) if held_out else len(self._split.training)
        return await asyncio.to_thread(
            lambda: self._model.answer(assignment, query, self._meta(assignment, began, examples=examples)).to_bytes()
        )

    async def _update(self, assignment: Assignment, began: float) -> bytes:
        assert assignment.round is not None
        assert assignment.version is not None
        task = assignment.task
        await self._adopt(assignment)
        start, head = await self._aggregator.version(task.name, assignment.version)
        self._check_shape(task, start.values, "the coefficients")
        self._check_head(task, head)
        self._status.begin(Activity.EVALUATING, round_=assignment.round)
        every = assignment.kind is AssignmentKind.EVALUATION and task.head == "auto"
        held_out, others = await asyncio.to_thread(self._model.evaluate, start, head, self._status.progress, every_reading=every)
        if not task.policy.label_bias:
            held_out = replace(held_out, label_probabilities=None)
            others = {reading: replace(counts, label_probabilities=None) for reading, counts in others.items()}
        if not assignment.confidence:
            held_out = replace(held_out, confidence=None)
            others = {reading: replace(counts, confidence=None) for reading, counts in others.items()}
        if assignment.kind is AssignmentKind.EVALUATION:
            meta = self._meta(assignment, began, examples=len(self._split.holdout))
            return UpdateBody.of(held_out, meta, others=others).to_bytes()
        self._status.begin(Activity.CALIBRATING, round_=assignment.round)
        seed = self._seed(assignment)
        result, loss = await asyncio.to_thread(self._model.calibrate, assignment, start, head, seed, self._status.progress)
        update: Update = result
        if not isinstance(result, Gradient) and (dtype := task.policy.update_dtype) != "float32":
            update = self._state.error_feedback.quantize(
                result.values - start.values, dtype, round_=assignment.round, version=assignment.version
            )
        meta = self._meta(assignment, began, examples=len(self._split.training), loss=loss)
        return UpdateBody.of(held_out, meta, update).to_bytes()

    def _check_shape(self, task: TaskBrief, values: Float32, what: str) -> None:
        """Check what the aggregator sent against the model before it is used.

        Raises:
            UnreadableAnswer: it has another shape than the task on this model.
        """
        identity = self._model.identity
        sites = (len(resolve_layers(task.layers, identity.num_layers)), 2)
        expected = (*sites, identity.hidden_size) if values.ndim == 3 else (*sites, 2, task.groups)
        if values.shape != expected:
            raise UnreadableAnswer(f"the aggregator sent {what} in shape {values.shape}; on this model the task takes {expected}")

    def _check_head(self, task: TaskBrief, head: LabelHead | None) -> None:
        """Check the label head of a version.

        Raises:
            UnreadableAnswer: the task reads its labels by a head, and the version has none, or one of another shape.
        """
        expected = (len(task.labels), self._model.identity.hidden_size)
        if task.head != "words" and (head is None or head.weight.shape != expected):
            sent = "none" if head is None else f"one of shape {head.weight.shape}"
            raise UnreadableAnswer(
                f"the aggregator sent no label head that fits: the task takes {expected}, the version has {sent}"
            )

    def _check_query(self, task: TaskBrief, query: HeadQuery) -> None:
        """Check what a head round asks before anything is computed for it.

        Raises:
            UnreadableAnswer: it is of another shape than the task on this model, holds numbers that are not finite, or asks for too much.
        """
        labels, channels = len(task.labels), self._model.identity.hidden_size
        shapes = {
            "shares": (query.shares, (labels,)),
            "directions": (query.directions, (labels - 1, channels)),
            "candidates": (query.candidates, (MOST_CANDIDATES, labels - 1, channels)),
            "temperatures": (query.temperatures, (MOST_CANDIDATES,)),
        }
        for name, (values, most) in shapes.items():
            if values is None:
                continue
            fits = values.ndim == len(most) and values.shape[0] <= most[0] and values.shape[1:] == most[1:]
            if not fits or (name == "shares" and values.shape != most) or not np.isfinite(values).all():
                raise UnreadableAnswer(f"the aggregator asks with {name} of shape {values.shape}; the task takes at most {most}")

    def _seed(self, assignment: Assignment) -> int:
        """Return the round's seed with this client's name mixed in, so that clients draw different batches."""
        assert assignment.work is not None
        return int.from_bytes(hashlib.sha256(f"{assignment.work.seed}/{self._client}".encode()).digest()[:7], "big")

    def _meta(self, assignment: Assignment, began: float, *, examples: int, loss: float | None = None) -> ContributionMeta:
        return ContributionMeta(
            fingerprint=self._model.identity.fingerprint,
            examples=examples,
            version=assignment.version,
            loss=None if loss is None else float(f"{loss:.6g}"),
            seconds=round(time.monotonic() - began, 3),
        )

    async def _send(self, assignment: Assignment, round_: int, body: bytes) -> None:
        self._status.begin(Activity.SENDING, round_=round_)
        submit = self._aggregator.submit_update
        if assignment.kind is AssignmentKind.CONTEXT:
            submit = self._aggregator.submit_context
        elif assignment.kind is AssignmentKind.HEAD:
            submit = self._aggregator.submit_head
        receipt = await submit(assignment.task.name, round_, body)
        self._status.contributions += 1
        log.info("received", round=round_, digest=receipt.digest, bytes=len(body))


def _release_0_1_repr(examples: Sequence[LabelledText[int]]) -> str:
    """Return the repr of examples in release 0.1, so that an upgraded agent finds the work it finished before."""
    examples_repr = ", ".join(f"Demonstration(text={example.text!r}, label={example.label!r})" for example in examples)
    return f"({examples_repr}{',' if len(examples) == 1 else ''})"
