"""The state machine of a round: what it takes, what it refuses, how it ends."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from ifed.errors import (
    AlreadyContributed,
    FingerprintMismatch,
    IFedError,
    LayoutMismatch,
    Malformed,
    RoundClosed,
    StaleUpdate,
    WrongState,
)
from ifed.messages.enums import RoundKind, RoundState
from services.aggregator.domain.contribution import Contribution, ContributionSchema
from services.aggregator.domain.round import Round, Seat
from testing.factories import NOON, OTHER_FINGERPRINT, context_contribution, contribution_schema, round_, update_contribution

LATER = NOON + timedelta(minutes=1)
AT_DEADLINE = NOON + timedelta(hours=1)


def test_the_last_expected_contribution_ends_the_gathering() -> None:
    gathering = round_(expected=2)
    gathering.accept(context_contribution("a"), contribution_schema(), LATER)
    assert gathering.state is RoundState.OPEN
    gathering.accept(context_contribution("b"), contribution_schema(), LATER)
    assert gathering.state is RoundState.AGGREGATING


@pytest.mark.parametrize("state", [state for state in RoundState if state is not RoundState.OPEN])
def test_a_closed_round_refuses_a_late_update(state: RoundState) -> None:
    with pytest.raises(RoundClosed, match=state.value):
        round_(state=state).accept(context_contribution("a"), contribution_schema(), LATER)


def test_a_contribution_at_the_deadline_is_late_whoever_noticed_it() -> None:
    with pytest.raises(RoundClosed, match="13:00:00"):
        round_().accept(context_contribution("a"), contribution_schema(), AT_DEADLINE)


def test_an_update_from_another_version_is_stale() -> None:
    calibrating = round_(kind=RoundKind.CALIBRATION, version=3)
    with pytest.raises(StaleUpdate, match="version 3, this update from version 2"):
        calibrating.accept(update_contribution("a", version=2), contribution_schema(), LATER)


@pytest.mark.parametrize(
    ("kind", "contribution", "refusal"),
    [
        (RoundKind.CALIBRATION, context_contribution("a"), WrongState),
        (RoundKind.CONTEXT, update_contribution("a"), WrongState),
        (RoundKind.CALIBRATION, update_contribution("a", None), LayoutMismatch),
        (RoundKind.EVALUATION, update_contribution("a", 0.5), LayoutMismatch),
        (RoundKind.CONTEXT, context_contribution("a", fingerprint=OTHER_FINGERPRINT), FingerprintMismatch),
        (RoundKind.CONTEXT, context_contribution("a", examples=0), Malformed),
        (RoundKind.CALIBRATION, update_contribution("a", examples=0), Malformed),
        (RoundKind.CALIBRATION, update_contribution("a", confusion=[[1]]), LayoutMismatch),
        (RoundKind.CALIBRATION, update_contribution("a", confusion=[[8, 1], [0, 0]]), Malformed),
    ],
)
def test_what_is_no_contribution_to_this_round_is_refused(
    kind: RoundKind, contribution: Contribution, refusal: type[IFedError]
) -> None:
    gathering = round_(kind=kind)
    with pytest.raises(refusal):
        gathering.accept(contribution, contribution_schema(), LATER)
    assert gathering.contributed == 0


def test_counts_whose_sum_would_overflow_are_refused_when_they_are_read() -> None:
    with pytest.raises(Malformed, match="'confusion'"):
        update_contribution("a", confusion=[[2**63 - 1, 2**63 - 1], [0, 0]])


def test_a_tensor_of_another_shape_is_refused_naming_both() -> None:
    taller: ContributionSchema = contribution_schema(context_shape=(3, 2, 8), coefficients_shape=(3, 2, 2, 2))
    with pytest.raises(LayoutMismatch, match=r"\(2, 2, 8\).*\(3, 2, 8\)"):
        round_().accept(context_contribution("a"), taller, LATER)
    with pytest.raises(LayoutMismatch, match=r"\(2, 2, 2, 2\).*\(3, 2, 2, 2\)"):
        round_(kind=RoundKind.CALIBRATION).accept(update_contribution("a"), taller, LATER)


def test_an_evaluation_may_come_from_a_client_that_held_nothing_out() -> None:
    evaluating = round_(kind=RoundKind.EVALUATION, expected=1)
    nothing = np.zeros((2, 2), dtype=np.int64)
    evaluating.accept(update_contribution("a", None, confusion=nothing, examples=0), contribution_schema(holdout=0), LATER)
    assert evaluating.state is RoundState.AGGREGATING


def test_the_same_contribution_again_is_the_same_entry() -> None:
    sent = context_contribution("a")
    assert Seat("a", sent.entry).repeats(context_contribution("a")) == sent.entry
    assert Seat("a").repeats(sent) is None


def test_another_contribution_of_the_same_client_is_refused() -> None:
    with pytest.raises(AlreadyContributed):
        Seat("a", context_contribution("a", 1.0).entry).repeats(context_contribution("a", 2.0))


def gathered(contributed: int, *, expected: int = 4, required: int = 3) -> Round:
    return round_(expected=expected, required=required, contributed=contributed)


def test_at_the_deadline_a_quorum_goes_on_with_those_who_came() -> None:
    overdue = gathered(3)
    overdue.expire(AT_DEADLINE, ["d"])
    assert overdue.state is RoundState.AGGREGATING


def test_at_the_deadline_too_few_fail_the_round_and_the_missing_are_named() -> None:
    overdue = gathered(2)
    overdue.expire(AT_DEADLINE, ["c", "d"])
    assert (overdue.state, overdue.closed_at) == (RoundState.FAILED, AT_DEADLINE)
    assert overdue.reason == "2 of 3 needed contributions came; missing: c, d"


def test_of_many_missing_clients_only_some_are_named() -> None:
    overdue = gathered(0, expected=100)
    overdue.expire(AT_DEADLINE, [f"c{number:02}" for number in range(100)])
    assert overdue.reason is not None
    assert overdue.reason.endswith("c18, c19 and 80 more")


@pytest.mark.parametrize("gathering", [gathered(2), round_(state=RoundState.CLOSED, deadline=NOON)])
def test_a_round_expires_only_when_open_and_overdue(gathering: Round) -> None:
    with pytest.raises(WrongState):
        gathering.expire(NOON + timedelta(minutes=59), [])


def test_an_admin_may_close_below_the_quorum_but_not_an_empty_round() -> None:
    some = gathered(1)
    some.close_now()
    assert some.state is RoundState.AGGREGATING
    with pytest.raises(WrongState, match="no contributions"):
        gathered(0).close_now()


def test_an_extended_round_takes_what_came_after_its_first_deadline() -> None:
    gathering = round_()
    gathering.extend(600)
    gathering.accept(context_contribution("a"), contribution_schema(), AT_DEADLINE)
    assert gathering.contributed == 1


def test_a_cancelled_round_says_so_and_stays_so() -> None:
    gathering = round_()
    gathering.cancel(LATER)
    assert (gathering.state, gathering.closed_at) == (RoundState.CANCELLED, LATER)
    for again in (gathering.close_now, lambda: gathering.extend(1), lambda: gathering.cancel(LATER)):
        with pytest.raises(WrongState):
            again()


def test_only_an_aggregating_round_closes() -> None:
    with pytest.raises(WrongState):
        round_().close(LATER, produced=1, evaluation=None)


def test_a_revoked_client_is_no_longer_waited_for() -> None:
    gathering = round_(expected=2, required=2, contributed=1)
    assert gathering.excuse(LATER) is RoundState.AGGREGATING
    assert (gathering.expected, gathering.required) == (1, 1)


def test_a_round_that_nobody_is_left_for_fails() -> None:
    gathering = round_(expected=1)
    assert gathering.excuse(LATER) is RoundState.FAILED
    assert gathering.reason == "every client it waited for was revoked or withdrew"
