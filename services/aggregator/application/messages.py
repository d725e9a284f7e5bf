"""Convert domain objects to messages of the HTTP API."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from ifed.messages.clients import ClientInfo
from ifed.messages.enums import AssignmentKind, RoundKind
from ifed.messages.evaluations import ConfidenceBin
from ifed.messages.rounds import (
    MOST,
    Assignment,
    ClientProgress,
    ContextInfo,
    Evaluation,
    LabelEvaluation,
    LocalWork,
    Member,
    Page,
    Receipt,
    RoundInfo,
    TaskBrief,
    TaskInfo,
    Withdrawal,
)
from ifed.messages.tasks import Layout
from ifed.tensors.confidence import BINS, ConfidenceBins
from services.aggregator.domain.access import Party
from services.aggregator.domain.aggregates import Aggregate
from services.aggregator.domain.contribution import ContributionRecord
from services.aggregator.domain.evaluation import EvaluationResult, LabelResult, threshold_results
from services.aggregator.domain.round import Round, Seat
from services.aggregator.domain.schedule import NEAREST, Evaluated, seed_of
from services.aggregator.domain.task import Membership, Task

Item = TypeVar("Item")
_WORK = (AssignmentKind.CONTEXT, AssignmentKind.HEAD, AssignmentKind.CALIBRATION, AssignmentKind.EVALUATION)


def task_info(
    task: Task,
    members: Iterable[Membership],
    withdrawn: Iterable[Membership],
    newest: RoundInfo | None,
    evaluations: Evaluated,
    context: int | None,
) -> TaskInfo:
    """Return a task as admins see it; each evaluation has the results of its labels if they were read."""
    return TaskInfo(
        spec=task.spec,
        state=task.state,
        created_at=task.created_at,
        identity=task.spec.identity,
        layout=layout(task),
        members=[member_info(member) for member in members],
        withdrawn=[withdrawal(member) for member in withdrawn],
        round=newest,
        version=task.version,
        served=task.served,
        context=context,
        evaluations=[evaluation(version, result, task.spec.labels) for version, result in evaluations],
        reason=task.reason,
        warm_start=None if task.warm_start == NEAREST else task.warm_start,
    )


def round_info(round_: Round, seats: Sequence[Seat], labels: Sequence[str] = ()) -> RoundInfo:
    """Return a round as admins see it, with the results of these labels."""
    entries = [seat.entry for seat in seats if seat.entry is not None]
    measured = None
    if round_.evaluation is not None and round_.version is not None:
        measured = evaluation(round_.version, round_.evaluation, labels)
    return RoundInfo(
        task=round_.task,
        number=round_.number,
        kind=round_.kind,
        state=round_.state,
        opened_at=round_.opened_at,
        deadline=round_.deadline,
        closed_at=round_.closed_at,
        expected=[seat.client for seat in seats],
        missing=[seat.client for seat in seats if seat.entry is None],
        clients=[_progress(seat) for seat in seats],
        version=round_.version,
        context=round_.context,
        produced=round_.produced,
        question=round_.question,
        loss=mean_loss(entries),
        evaluation=measured,
        reason=round_.reason,
        attempt=round_.attempt,
    )


def mean_loss(entries: Iterable[ContributionRecord]) -> float | None:
    """Return the mean of the losses that clients reported, weighted by their examples; None when the weights sum to 0.

    A loss that an earlier release took without a bound counts as the bound, so that the mean is finite.
    """
    losses = [(min(max(entry.loss, -MOST), MOST), entry.weight) for entry in entries if entry.loss is not None]
    total = sum(weight for _, weight in losses)
    return math.fsum(loss * (weight / total) for loss, weight in losses) if total else None


def _progress(seat: Seat) -> ClientProgress:
    if (entry := seat.entry) is None:
        return ClientProgress(client=seat.client)
    return ClientProgress(
        client=seat.client,
        contributed_at=entry.received_at,
        examples=entry.weight,
        bytes_up=entry.size,
        loss=entry.loss,
        accuracy=entry.correct / entry.evaluated if entry.correct is not None and entry.evaluated else None,
        seconds=entry.seconds,
    )


def evaluation(version: int, result: EvaluationResult, labels: Sequence[str] = ()) -> Evaluation:
    """Return the evaluation of a version.

    Args:
        labels: of the task, for the results of each; none to leave them out.
    """
    return Evaluation(
        version=version,
        accuracy=result.accuracy,
        macro_f1=result.macro_f1,
        examples=result.examples,
        log_likelihood=result.log_likelihood,
        reading=result.reading,
        readings=list(result.readings),
        expected_calibration_error=result.expected_calibration_error,
        thresholds=None if result.confidence is None else threshold_results(result.confidence),
        labels=label_evaluations(labels, result.labels) if labels and result.labels else None,
    )


def label_evaluations(labels: Sequence[str], results: Sequence[LabelResult]) -> list[LabelEvaluation]:
    """Return how well each label is recognised, in the order of the task's labels."""
    return [
        LabelEvaluation(
            label=label, texts=result.texts, predicted=result.predicted, precision=result.precision, recall=result.recall
        )
        for label, result in zip(labels, results, strict=True)
    ]


def confidence_bins(confidence: ConfidenceBins) -> list[ConfidenceBin]:
    """Return the bins of the highest probability, the lowest first."""
    return [
        ConfidenceBin(
            least=place / BINS,
            texts=part.texts,
            correct=part.correct,
            confidence=part.confidence / part.texts if part.texts else None,
        )
        for place, part in enumerate(confidence.bins)
    ]


def member_info(member: Membership) -> Member:
    """Return a client that has joined a task."""
    return Member(client=member.client, joined_at=member.joined_at, label_counts=dict(member.label_counts), holdout=member.holdout)


def withdrawal(member: Membership) -> Withdrawal:
    """Return the withdrawal of a client that has withdrawn."""
    assert member.withdrawn_at is not None, "it has withdrawn"
    return Withdrawal(task=member.task, client=member.client, withdrawn_at=member.withdrawn_at)


def client_info(party: Party) -> ClientInfo:
    """Return an enrolled party, without the hash of its token."""
    return ClientInfo(
        name=party.name,
        role=party.role,
        enrolled_at=party.enrolled_at,
        revoked_at=party.revoked_at,
        last_seen_at=party.last_seen_at,
    )


def context_info(aggregate: Aggregate) -> ContextInfo:
    """Return a version of the context vector."""
    return ContextInfo(
        version=aggregate.version,
        digest=aggregate.digest,
        created_at=aggregate.created_at,
        examples=aggregate.weight,
        changes=aggregate.changes,
    )


def receipt(task: str, number: int, entry: ContributionRecord) -> Receipt:
    """Return the receipt of a stored contribution."""
    return Receipt(task=task, round=number, client=entry.client, digest=entry.digest, received_at=entry.received_at)


def layout(task: Task) -> Layout | None:
    """Return the shapes of a task's tensors; None before its model is known."""
    return None if task.spec.identity is None else task.spec.layout(task.spec.identity)


def assignment(task: Task, kind: AssignmentKind, round_: Round | None, context: Aggregate | None, client: str) -> Assignment:
    """Return an assignment of this kind; round, version and work are set only when there is work."""
    spec = task.spec
    brief = TaskBrief(
        name=spec.name,
        labels=spec.labels,
        template=spec.template,
        chat=spec.chat,
        model=spec.model,
        identity=spec.identity,
        layout=layout(task),
        layers=spec.layers,
        groups=spec.groups,
        head=spec.head,
        injection=spec.injection,
        policy=spec.policy,
    )
    if kind not in _WORK or round_ is None:
        return Assignment(kind=kind, task=brief, client=client, state=task.state, reason=task.reason)
    return Assignment(
        kind=kind,
        task=brief,
        round=round_.number,
        deadline=round_.deadline,
        version=round_.version,
        context_version=None if context is None else context.version,
        context_digest=None if context is None else context.digest,
        work=_local_work(task, round_) if round_.kind is RoundKind.CALIBRATION else None,
        question=round_.question,
        confidence=round_.kind in (RoundKind.CALIBRATION, RoundKind.EVALUATION),
        client=client,
        state=task.state,
    )


def _local_work(task: Task, round_: Round) -> LocalWork:
    policy = task.spec.policy
    first, last = policy.learning_rate_at(task.calibrated)
    return LocalWork(
        mode=policy.mode,
        steps=policy.local_steps,
        batch_size=policy.batch_size,
        learning_rate=first,
        learning_rate_end=last,
        weight_decay=policy.weight_decay,
        logit_adjustment=policy.logit_adjustment,
        seed=seed_of(task.name, round_.number),
    )


def in_words(current: Assignment) -> str:
    """Return an assignment as a part of a sentence, for the refusal of a late contribution."""
    if current.round is None:
        return f"the client's assignment is now {current.kind} (the task is {current.state})"
    start = "" if current.version is None else f" from version {current.version}"
    return f"the client's assignment is now {current.kind} in round {current.round}{start}"


def page(items: Sequence[Item], limit: int, key: Callable[[Item], str]) -> Page[Item]:
    """Return a page of up to `limit` items.

    Args:
        items: up to `limit + 1` of them; the last one only shows that there are more.
        key: the value of `after` that continues behind an item.
    """
    shown = list(items[:limit])
    return Page(items=shown, next=key(shown[-1]) if len(items) > limit else None)
