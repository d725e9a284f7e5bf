"""What a task does next: which round opens and for whom, when it stops, and which version it serves."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from ifed.messages.enums import AssignmentKind, HeadState, RoundKind, RoundState, TaskState
from ifed.messages.tasks import Policy, ceil_share
from ifed.tensors.values import Float64
from services.aggregator.domain.evaluation import EvaluationResult
from services.aggregator.domain.round import Round, Seat
from services.aggregator.domain.task import Membership, Task

NEAREST = "*"  # no task can have this name
Evaluated = Sequence[tuple[int, EvaluationResult]]


@dataclass(frozen=True, slots=True)
class Step:
    """The round a task needs next."""

    kind: RoundKind
    version: int | None = None


def next_step(task: Task, newest: Round | None, evaluations: Evaluated) -> Step | None:
    """Return the next round: context, then cycles of calibration and an evaluation, while that is the best so far; then None.

    A task with a label head solves it before the first calibration round and again at the end of each cycle, on the states under the new
    coefficients. A failed or cancelled round changes no version, so its step is repeated.
    """
    if task.version is None:
        return Step(RoundKind.CONTEXT)
    if task.has_head and task.head is HeadState.NONE:
        return Step(RoundKind.HEAD, task.version)
    policy, calibrated = task.spec.policy, task.calibrated
    stopped = stalled(policy, evaluations) or calibrated >= policy.rounds
    ended = stopped or (calibrated > 0 and calibrated % policy.cycle_rounds == 0)
    if task.has_head and calibrated:
        if ended and task.head is HeadState.CARRIED:
            return Step(RoundKind.HEAD, task.version if policy.cycle else _best(evaluations) or task.version)
        ended = task.head is HeadState.SOLVED
    if not ended:
        return Step(RoundKind.CALIBRATION, task.version)
    if not _measured(task.version, newest, evaluations):
        return Step(RoundKind.EVALUATION, task.version)
    return None if stopped or not _leads(task.version, evaluations) else Step(RoundKind.CALIBRATION, task.version)


def _measured(version: int, newest: Round | None, evaluations: Evaluated) -> bool:
    """Return whether a version has been evaluated, or clients were asked to and had no held-out examples."""
    asked = newest is not None and newest.kind is RoundKind.EVALUATION and newest.state is RoundState.CLOSED
    return (newest is not None and asked and newest.version == version) or any(other == version for other, _ in evaluations)


def _leads(version: int, evaluations: Evaluated) -> bool:
    """Return whether the newest evaluation of a version ranks above those of all others; without any evaluation it does not."""
    ranks = list(zip(_ranks(evaluations), [evaluated for evaluated, _ in evaluations], strict=True))
    own = [rank for rank, evaluated in ranks if evaluated == version]
    others = [rank for rank, evaluated in ranks if evaluated != version]
    return bool(own) and (not others or own[-1] > max(others))


def _best(evaluations: Evaluated) -> int | None:
    """Return the evaluated version of the highest rank, the newest of several; None when there is none."""
    ranked = [(rank, version) for rank, (version, _) in zip(_ranks(evaluations), evaluations, strict=True)]
    return max(ranked)[1] if ranked else None


def _ranks(evaluations: Evaluated) -> list[tuple[float, float]]:
    """Return what versions are compared by, the higher the better: likelihood and then accuracy, or accuracy alone if a likelihood is unknown."""
    likelihoods = [evaluation.log_likelihood for _, evaluation in evaluations if evaluation.log_likelihood is not None]
    accuracies = [evaluation.accuracy for _, evaluation in evaluations]
    if len(likelihoods) < len(accuracies):
        return [(accuracy, 0.0) for accuracy in accuracies]
    return list(zip(likelihoods, accuracies, strict=True))


def stalled(policy: Policy, evaluations: Evaluated) -> bool:
    """Return whether the last `policy.patience` evaluations all failed to exceed the best one before them.

    They are compared by likelihood, or by accuracy where that is unknown. Return False if the policy has no patience or there is no
    evaluation. An equal one is not an improvement.

    Args:
        policy: of the task.
        evaluations: versions and their results, oldest first.
    """
    if policy.patience is None or not evaluations:
        return False
    ranks = [rank for rank, _ in _ranks(evaluations)]
    return len(ranks) - 1 - ranks.index(max(ranks)) >= policy.patience


def early_end(task: Task) -> str | None:
    """Return why a task that is done made fewer versions than its policy has rounds; None when it did not."""
    policy = task.spec.policy
    if task.version is None or task.calibrated >= policy.rounds:
        return None
    measure = "likelihood" if task.has_head else "accuracy"
    if policy.patience is None or task.calibrated % policy.cycle_rounds == 0:
        return f"done after {task.calibrated} of at most {policy.rounds} rounds: the last {policy.cycle_rounds} did not raise the {measure}"
    return f"stopped early after {task.calibrated} of {policy.rounds} rounds: the {measure} had not risen for {policy.patience} in a row"


def quorum_of(expected: int, count: int | None, fraction: float) -> int:
    """Return the number of contributions that a round of `expected` clients needs at its deadline.

    Without `count` and without `fraction`, all of them. Otherwise the larger of `count` and `fraction × expected` rounded up, and
    at least one: `quorum_of(10, 3, 0.25) == 3`, `quorum_of(10, None, 0.25) == 3`, `quorum_of(10, None, 0.0) == 10`.
    """
    if count is None and fraction == 0.0:
        return max(expected, 1)
    return max(count or 1, ceil_share(fraction, expected))


def clients_needed(policy: Policy, newest: Round | None) -> int:
    """Return the number of members that a task needs before a round opens: its quorum, and before the first round all expected clients."""
    return max(policy.clients_expected if newest is None else 1, policy.quorum or 1)


def attempt_after(task: Task, newest: Round | None) -> int:
    """Return the attempt of the next round: one more after a failure that is retried, else 1, also after an admin starts the task again."""
    if newest is None or newest.state is not RoundState.FAILED or newest.attempt > task.spec.policy.retries:
        return 1
    return newest.attempt + 1


def open_round(
    task: Task, step: Step, number: int, members: int, now: datetime, *, attempt: int = 1, context: int | None = None
) -> Round:
    """Return a new round that waits for `members` clients and works with version `context` of the context vector."""
    policy = task.spec.policy
    return Round(
        task=task.name,
        number=number,
        kind=step.kind,
        version=step.version,
        opened_at=now,
        deadline=now + timedelta(seconds=policy.deadline_seconds),
        expected=members,
        required=quorum_of(members, policy.quorum, policy.quorum_fraction),
        attempt=attempt,
        context=context,
    )


def promoted(task: Task, evaluations: Evaluated) -> int | None:
    """Return the version to serve; None when there is none.

    With `serve: best` it is the evaluated version of the highest held-out likelihood, or accuracy where that is unknown, the newest of
    several. With `serve: latest` it is the newest
    version. A finished task that no client could evaluate serves its newest version in both cases.
    """
    unevaluated = task.state is TaskState.FINISHED and not evaluations
    if task.spec.policy.serve == "latest" or unevaluated:
        return task.version
    return _best(evaluations)


def assigned(task: Task, *, joined: bool, newest: Round | None, seat: Seat | None, now: datetime) -> AssignmentKind:
    """Return what a client should do now; where it waits, `may_add` says whether it could add to the context vector instead."""
    if task.state is TaskState.FAILED:
        return AssignmentKind.DONE
    if not joined:
        return AssignmentKind.JOIN
    if task.state is TaskState.FINISHED:
        return AssignmentKind.DONE
    idle = newest is None or newest.state is not RoundState.OPEN or newest.overdue(now)
    if newest is None or idle or task.state is not TaskState.RUNNING or seat is None or seat.entry is not None:
        return AssignmentKind.WAIT
    return AssignmentKind(newest.kind.value)


def may_add(task: Task, kind: AssignmentKind) -> bool:
    """Return whether a client without a part in the context vector could send one; rounds come first, because they have a deadline."""
    idle = kind is AssignmentKind.WAIT and task.state is TaskState.RUNNING
    over = kind is AssignmentKind.DONE and task.state is TaskState.FINISHED
    return task.version is not None and (idle or over)


def label_shares(labels: Sequence[str], members: Sequence[Membership]) -> Float64:
    """Return the share of each label among the training examples of all members, (C,); equal shares when there are none."""
    counts = np.array([sum(member.label_counts.get(label, 0) for member in members) for label in labels], dtype=np.float64)
    total = counts.sum()
    return np.asarray(counts / total if total else np.full(len(labels), 1 / len(labels)))


def seed_of(task: str, number: int) -> int:
    """Return the seed of a round's local work, 31 bits: the same on every machine and different for every round."""
    return int.from_bytes(hashlib.sha256(f"{task}/{number}".encode()).digest()[:4], "big") >> 1


def sample(members: Sequence[str], count: int, seed: int) -> list[str]:
    """Return `count` of the members by name, drawn without replacement by the sha256 of seed and name; all when there are no more.

    A member that joins or leaves does not change the rank of another, so a round that is repeated with the same seed asks the same
    clients, as far as they are still members.
    """
    ranked = sorted(members, key=lambda member: hashlib.sha256(f"{seed}/{member}".encode()).digest())
    return sorted(ranked[:count])
