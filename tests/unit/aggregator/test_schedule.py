"""The plan of a task: quorum, order of rounds, early stop, promotion, assignments, seeds."""

from __future__ import annotations

from datetime import timedelta

import pytest

from ifed.errors import WrongState
from ifed.messages.enums import AssignmentKind, HeadState, RoundKind, RoundState, TaskState
from services.aggregator.domain.evaluation import EvaluationResult
from services.aggregator.domain.round import Round, Seat
from services.aggregator.domain.schedule import (
    Step,
    assigned,
    attempt_after,
    clients_needed,
    may_add,
    next_step,
    open_round,
    promoted,
    quorum_of,
    seed_of,
    stalled,
)
from services.aggregator.domain.task import Task
from testing.factories import NOON, contribution_record, policy, round_, task


def measured(*accuracies: float) -> list[tuple[int, EvaluationResult]]:
    return [(version, EvaluationResult(accuracy, accuracy, 100)) for version, accuracy in enumerate(accuracies)]


@pytest.mark.parametrize(
    ("expected", "count", "fraction", "required"),
    [
        (10, None, 0.0, 10),
        (10, 3, 0.0, 3),
        (10, None, 0.25, 3),
        (10, 3, 0.25, 3),
        (10, 3, 0.8, 8),
        (30, None, 0.1, 3),  # 30 · 0.1 is a little over 3 in floating point
        (10, None, 1.0, 10),
        (2, None, 0.01, 1),
    ],
)
def test_the_quorum_is_the_larger_of_count_and_share(expected: int, count: int | None, fraction: float, required: int) -> None:
    assert quorum_of(expected, count, fraction) == required


def test_the_first_round_opens_for_those_expected_and_none_for_fewer_than_its_quorum() -> None:
    assert clients_needed(policy(clients_expected=2), None) == 2
    assert clients_needed(policy(clients_expected=2, quorum=5), None) == 5
    assert clients_needed(policy(clients_expected=4), round_()) == 1
    assert clients_needed(policy(clients_expected=4, quorum=3), round_()) == 3


def running(version: int | None = None, **changes: object) -> Task:
    made = task(**changes)
    made.state, made.version, made.calibrated = TaskState.RUNNING, version, version or 0
    return made


def closed(kind: RoundKind, number: int = 1) -> Round:
    return round_(number, kind, state=RoundState.CLOSED)


def test_the_plan_is_context_then_calibration_then_evaluation_then_nothing() -> None:
    steps = [
        next_step(running(None), None, []),
        next_step(running(0), closed(RoundKind.CONTEXT), []),
        next_step(running(1), closed(RoundKind.CALIBRATION), measured(0.5)),
        next_step(running(2), closed(RoundKind.CALIBRATION), measured(0.5, 0.6)),
        next_step(running(2), round_(5, RoundKind.EVALUATION, version=2, state=RoundState.CLOSED), measured(0.5, 0.6, 0.7)),
    ]
    assert steps == [
        Step(RoundKind.CONTEXT),
        Step(RoundKind.CALIBRATION, 0),
        Step(RoundKind.CALIBRATION, 1),
        Step(RoundKind.EVALUATION, 2),
        None,
    ]


@pytest.mark.parametrize("state", [RoundState.FAILED, RoundState.CANCELLED])
def test_a_round_that_came_to_nothing_comes_again(state: RoundState) -> None:
    broken = round_(2, RoundKind.CALIBRATION, state=state)
    assert next_step(running(0), broken, []) == Step(RoundKind.CALIBRATION, 0)
    assert next_step(running(2), round_(5, RoundKind.EVALUATION, state=state), []) == Step(RoundKind.EVALUATION, 2)


def test_a_task_that_stalls_is_evaluated_and_ends() -> None:
    stalling = running(3, rounds=10, patience=1)
    assert next_step(stalling, closed(RoundKind.CALIBRATION), measured(0.7, 0.8, 0.8)) == Step(RoundKind.EVALUATION, 3)


@pytest.mark.parametrize(
    ("accuracies", "stops"),
    [([], False), ([0.5], False), ([0.5, 0.6], False), ([0.6, 0.5], False), ([0.6, 0.6, 0.6], True), ([0.5, 0.7, 0.6, 0.65], True)],
)
def test_patience_counts_evaluations_that_did_not_rise_above_the_best(accuracies: list[float], stops: bool) -> None:
    assert stalled(policy(patience=2), measured(*accuracies)) is stops
    assert not stalled(policy(patience=None), measured(*accuracies))


def cycling(version: int, calibrated: int, solved: HeadState, **changes: object) -> Task:
    made = running(version, **({"rounds": 6, "cycle": 2} | changes))
    made.calibrated, made.head = calibrated, solved
    return made


def test_a_cycle_ends_with_an_evaluation_and_another_follows_while_that_is_the_best() -> None:
    ended = cycling(2, 2, HeadState.NONE)
    assert next_step(ended, closed(RoundKind.CALIBRATION), measured(0.5, 0.6)) == Step(RoundKind.EVALUATION, 2)
    tried = round_(4, RoundKind.EVALUATION, version=2, state=RoundState.CLOSED)
    assert next_step(ended, tried, measured(0.5, 0.6, 0.7)) == Step(RoundKind.CALIBRATION, 2)
    assert next_step(ended, tried, measured(0.5, 0.7, 0.7)) is None
    assert next_step(ended, tried, measured(0.5, 0.6)) is None, "nobody could evaluate it"
    again = round_(5, RoundKind.CALIBRATION, version=2, state=RoundState.FAILED)
    assert next_step(ended, again, measured(0.5, 0.6, 0.7)) == Step(RoundKind.CALIBRATION, 2)
    last = cycling(6, 6, HeadState.NONE)
    assert (
        next_step(last, round_(9, RoundKind.EVALUATION, version=6, state=RoundState.CLOSED), measured(*(0.1 * n for n in range(7))))
        is None
    )


def test_a_label_head_is_solved_anew_at_the_end_of_each_cycle_and_then_evaluated() -> None:
    steps = [
        next_step(cycling(version, calibrated, head, head="auto"), closed(kind), measured(*accuracies))
        for version, calibrated, head, kind, accuracies in (
            (0, 0, HeadState.NONE, RoundKind.CONTEXT, ()),
            (1, 0, HeadState.SOLVED, RoundKind.HEAD, ()),
            (2, 1, HeadState.CARRIED, RoundKind.CALIBRATION, (0.5,)),
            (3, 2, HeadState.CARRIED, RoundKind.CALIBRATION, (0.5, 0.6)),
            (4, 2, HeadState.SOLVED, RoundKind.HEAD, (0.5, 0.6)),
            (4, 2, HeadState.SOLVED, RoundKind.EVALUATION, (0.5, 0.6, 0.6, 0.6, 0.7)),
            (4, 2, HeadState.SOLVED, RoundKind.EVALUATION, (0.5, 0.6, 0.6, 0.7, 0.6)),
        )
    ]
    assert steps == [
        Step(RoundKind.HEAD, 0),
        Step(RoundKind.CALIBRATION, 1),
        Step(RoundKind.CALIBRATION, 2),
        Step(RoundKind.HEAD, 3),
        Step(RoundKind.EVALUATION, 4),
        Step(RoundKind.CALIBRATION, 4),
        None,
    ]


def test_best_serves_the_most_accurate_version_and_of_equals_the_newer() -> None:
    assert promoted(running(3), measured(0.5, 0.8, 0.7)) == 1
    assert promoted(running(3), measured(0.8, 0.8, 0.7)) == 1
    assert promoted(running(3), []) is None


def test_latest_serves_the_newest_version() -> None:
    assert promoted(running(3, serve="latest"), measured(0.9, 0.8)) == 3


def test_a_finished_task_that_nobody_could_evaluate_serves_its_newest_version() -> None:
    unmeasured = running(2)
    unmeasured.finish(None)
    assert promoted(unmeasured, []) == 2


def test_a_round_takes_its_deadline_and_quorum_from_the_policy() -> None:
    made = open_round(running(0, deadline_seconds=90, quorum_fraction=0.5), Step(RoundKind.CALIBRATION, 0), 4, 5, NOON)
    assert (made.number, made.version, made.expected, made.required) == (4, 0, 5, 3)
    assert made.deadline == NOON + timedelta(seconds=90)


def test_a_retried_round_counts_its_attempts_and_a_new_start_counts_anew() -> None:
    retrying = running(0, retries=2)
    assert attempt_after(retrying, None) == 1
    assert attempt_after(retrying, closed(RoundKind.CONTEXT)) == 1
    failed = [attempt_after(retrying, round_(state=RoundState.FAILED, attempt=attempt)) for attempt in (1, 2, 3)]
    assert failed == [2, 3, 1]


def test_a_rolled_back_task_goes_on_from_where_it_went_back_to() -> None:
    far = running(5, rounds=6)
    far.served = 4
    far.roll_back(2, 2)
    assert (far.version, far.served, far.calibrated, far.state) == (2, 2, 2, TaskState.PAUSED)
    assert next_step(far, closed(RoundKind.CALIBRATION), measured(0.5)) == Step(RoundKind.CALIBRATION, 2)
    finished = running(5)
    finished.finish(None)
    finished.roll_back(1, 1)
    assert (finished.state, finished.reason) == (TaskState.FINISHED, "rolled back to version 1")
    with pytest.raises(WrongState):
        task().roll_back(0, 0)


def assignment(
    state: TaskState = TaskState.RUNNING, *, joined: bool = True, round_state: RoundState = RoundState.OPEN
) -> AssignmentKind:
    asked = running()
    asked.state = state
    newest = round_(kind=RoundKind.CALIBRATION, state=round_state)
    return assigned(asked, joined=joined, newest=newest, seat=Seat("a"), now=NOON)


@pytest.mark.parametrize("state", [TaskState.FINISHED, TaskState.FAILED])
def test_a_task_that_ended_is_done_for_those_who_took_part(state: TaskState) -> None:
    assert assignment(state) is AssignmentKind.DONE


def test_a_failed_task_takes_nobody_in() -> None:
    assert assignment(TaskState.FAILED, joined=False) is AssignmentKind.DONE


@pytest.mark.parametrize(
    ("state", "version", "kind", "expected"),
    [
        (TaskState.RUNNING, 0, AssignmentKind.WAIT, True),
        (TaskState.FINISHED, 2, AssignmentKind.DONE, True),
        (TaskState.RUNNING, 0, AssignmentKind.CALIBRATION, False),  # the round has a deadline, so it comes first
        (TaskState.RUNNING, None, AssignmentKind.WAIT, False),
        (TaskState.PAUSED, 0, AssignmentKind.WAIT, False),
        (TaskState.FAILED, 0, AssignmentKind.DONE, False),
    ],
)
def test_a_late_part_of_the_context_is_asked_for_in_idle_time(
    state: TaskState, version: int | None, kind: AssignmentKind, expected: bool
) -> None:
    asked = running(version)
    asked.state = state
    assert may_add(asked, kind) is expected


@pytest.mark.parametrize("state", [TaskState.DRAFT, TaskState.RUNNING, TaskState.PAUSED, TaskState.FINISHED])
def test_a_client_that_has_not_joined_is_asked_to(state: TaskState) -> None:
    assert assignment(state, joined=False) is AssignmentKind.JOIN


def test_work_is_given_only_in_an_open_round_of_a_running_task() -> None:
    assert assignment() is AssignmentKind.CALIBRATION
    assert assignment(TaskState.PAUSED) is AssignmentKind.WAIT
    assert assignment(round_state=RoundState.AGGREGATING) is AssignmentKind.WAIT


def test_a_client_that_contributed_or_came_too_late_waits() -> None:
    asked, newest = running(), round_()
    for seat in (Seat("a", contribution_record("a")), None):
        assert assigned(asked, joined=True, newest=newest, seat=seat, now=NOON) is AssignmentKind.WAIT
    assert assigned(asked, joined=True, newest=newest, seat=Seat("a"), now=newest.deadline) is AssignmentKind.WAIT
    assert assigned(asked, joined=True, newest=None, seat=None, now=NOON) is AssignmentKind.WAIT


def test_a_task_moves_only_where_its_state_allows() -> None:
    draft = task()
    for move in (draft.pause, draft.resume):
        with pytest.raises(WrongState):
            move()
    draft.start()
    draft.pause()
    draft.resume()
    draft.fail("round 2 failed")
    draft.start()
    assert (draft.state, draft.reason) == (TaskState.RUNNING, None)
    draft.finish(None)
    with pytest.raises(WrongState, match="finished"):
        draft.start()


def test_a_seed_depends_on_task_and_round_and_nothing_else() -> None:
    assert seed_of("sentiment", 3) == seed_of("sentiment", 3)
    assert len({seed_of("sentiment", 3), seed_of("sentiment", 4), seed_of("topic", 3)}) == 3
    assert 0 <= seed_of("sentiment", 3) < 2**31
