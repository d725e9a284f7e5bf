"""The agent follows its assignments until the task is done, despite refusals, outages and restarts."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog

from ifed.errors import (
    BadData,
    FingerprintMismatch,
    IFedError,
    NotJoined,
    Unauthenticated,
    Unavailable,
    UnknownTask,
    UnreadableAnswer,
    WrongState,
)
from ifed.messages.bodies import ContextBody
from ifed.messages.enums import AssignmentKind, TaskState
from services.client_agent.agent import CannotTakePart
from services.client_agent.status import Activity, Stopping
from tests.unit.client_agent.fakes import FakeFederation, assignment, brief, whole_task

ROOMY = brief(max_demonstrations=100)
JOIN, CONTEXT, WAIT, ADDITION, DONE = (
    assignment(AssignmentKind.JOIN, task=ROOMY),
    assignment(AssignmentKind.CONTEXT, 1, task=ROOMY),
    assignment(AssignmentKind.WAIT, task=ROOMY),
    assignment(AssignmentKind.ADDITION, task=ROOMY),
    assignment(AssignmentKind.DONE, task=ROOMY, state=TaskState.FINISHED),
)


def examples(bodies: list[bytes]) -> list[int]:
    """Return the number of demonstrations that each context body was made from."""
    return [ContextBody.from_bytes(body).meta.examples for body in bodies]


async def test_an_agent_joins_contributes_to_each_round_and_ends_with_the_task(tmp_path: Path) -> None:
    federation = FakeFederation(tmp_path, whole_task())
    with structlog.testing.capture_logs() as logs:
        assert await federation.agent.run() is TaskState.FINISHED
    assert [round_ for round_, _ in federation.aggregator.submissions] == [1, 2, 3]
    assert (federation.prepared, len(federation.aggregator.joins)) == (1, 1)
    assert (federation.status.activity, federation.status.contributions) == (Activity.DONE, 3)
    assert [line["task"] for line in logs if "has finished" in line["event"]] == ["sentiment"]


SERVER_ERROR = IFedError.named("InternalError", "Internal server error", status=500, retry_after=0)


@pytest.mark.parametrize(
    "error",
    [Unavailable("restarting", retry_after=0), SERVER_ERROR, UnreadableAnswer("nested"), UnknownTask("no task 'sentiment'")],
)
async def test_an_agent_retries_while_the_aggregator_is_away_or_the_task_it_waits_for_is_not_created(
    tmp_path: Path, error: Exception
) -> None:
    assert await FakeFederation(tmp_path, [error, *whole_task()], wait_for_task=True).agent.run() is TaskState.FINISHED


async def test_a_task_that_does_not_exist_ends_the_agent_with_the_names_of_those_that_do(tmp_path: Path) -> None:
    federation = FakeFederation(tmp_path, [UnknownTask("there is no task named 'sentimnt'; tasks are 'sentiment'"), *whole_task()])
    with pytest.raises(CannotTakePart, match=r"UnknownTask: .*tasks are 'sentiment'; set TASK, or WAIT_FOR_TASK=true"):
        await federation.agent.run()


async def test_a_client_that_the_aggregator_does_not_know_joins_again(tmp_path: Path) -> None:
    script = whole_task()
    federation = FakeFederation(tmp_path, [*script[:2], *script[1:]])
    federation.aggregator.submission_errors = [NotJoined("join first")]
    await federation.agent.run()
    assert len(federation.aggregator.joins) == 2


async def test_a_refused_join_ends_the_agent_with_the_reason(tmp_path: Path) -> None:
    federation = FakeFederation(tmp_path, whole_task())
    federation.aggregator.join_error = FingerprintMismatch("the task runs abc, you run def")
    with pytest.raises(CannotTakePart, match="the task runs abc"):
        await federation.agent.run()


async def test_a_revoked_token_ends_the_agent(tmp_path: Path) -> None:
    with pytest.raises(CannotTakePart, match="Unauthenticated"):
        await FakeFederation(tmp_path, [Unauthenticated("revoked")]).agent.run()


async def test_a_bad_data_file_ends_an_agent_that_has_not_read_it_before(tmp_path: Path) -> None:
    federation = FakeFederation(tmp_path, whole_task())
    federation.read_error = BadData("line 7")
    with pytest.raises(BadData, match="line 7"):
        await federation.agent.run()


async def test_a_stopping_agent_drops_its_work_between_two_steps(tmp_path: Path) -> None:
    federation = FakeFederation(tmp_path, whole_task())
    federation.status.stop()
    with pytest.raises(Stopping):
        await federation.agent.run()
    assert federation.aggregator.submissions == []


async def test_a_changed_draft_of_a_task_is_prepared_again(tmp_path: Path) -> None:
    changed = assignment(AssignmentKind.JOIN, task=brief().model_copy(update={"labels": ["yes", "no"]}))
    federation = FakeFederation(tmp_path, [whole_task()[0], changed, DONE])
    await federation.agent.run()
    assert federation.prepared == 2
    assert [list(request.label_counts) for request in federation.aggregator.joins] == [["no", "yes"], ["yes", "no"]]


async def test_an_agent_of_a_withdrawn_client_ends(tmp_path: Path) -> None:
    federation = FakeFederation(tmp_path, [JOIN, CONTEXT, WAIT, assignment(AssignmentKind.WITHDRAWN)])
    await federation.agent.run()
    assert (federation.status.activity, federation.status.note) == (Activity.DONE, "withdrawn from the task")


async def test_a_late_joiner_adds_all_its_demonstrations(tmp_path: Path) -> None:
    federation = FakeFederation(tmp_path, [JOIN, ADDITION, WAIT, DONE])
    await federation.agent.run()
    assert examples(federation.aggregator.additions) == [6]
    assert federation.aggregator.submissions == []
    assert federation.status.contributions == 1


async def test_a_running_agent_adds_new_rows_of_its_data_file(tmp_path: Path) -> None:
    federation = FakeFederation(tmp_path, [JOIN, CONTEXT, WAIT, Interrupted()])
    with pytest.raises(Interrupted):
        await federation.agent.run()
    federation.aggregator.script = [WAIT, WAIT, DONE]
    federation.append_to_data_file("new")
    await federation.agent.run()
    assert examples(federation.aggregator.additions) == [1]


@pytest.mark.parametrize("script", [[WAIT, DONE], [DONE]], ids=["running task", "finished task"])
async def test_a_restarted_agent_adds_new_rows_of_its_data_file_once(tmp_path: Path, script: list[object]) -> None:
    await FakeFederation(tmp_path, [JOIN, CONTEXT, DONE]).agent.run()
    grown = FakeFederation(tmp_path, script)  # type: ignore[arg-type]
    grown.append_to_data_file("new", "newer")
    assert await grown.agent.run() is TaskState.FINISHED
    assert examples(grown.aggregator.additions) == [2]
    assert grown.aggregator.joins[-1].label_counts == {"no": 5, "yes": 3}
    unchanged = FakeFederation(tmp_path, [WAIT, DONE])
    unchanged.split = grown.split
    await unchanged.agent.run()
    assert (unchanged.aggregator.additions, unchanged.prepared) == ([], 0)


async def test_no_more_demonstrations_are_sent_than_the_policy_takes(tmp_path: Path) -> None:
    script = whole_task()
    first = FakeFederation(tmp_path, [*script[:2], script[-1]])
    await first.agent.run()
    grown = FakeFederation(tmp_path, [script[-1]])
    grown.append_to_data_file("new")
    await grown.agent.run()
    assert examples([body for _, body in first.aggregator.submissions]) == [3]
    assert grown.aggregator.additions == []


async def test_an_addition_whose_answer_was_lost_is_sent_again_as_the_same_bytes(tmp_path: Path) -> None:
    killed = FakeFederation(tmp_path, [JOIN, ADDITION])
    killed.aggregator.addition_errors = [Interrupted()]
    with pytest.raises(Interrupted):
        await killed.agent.run()
    restarted = FakeFederation(tmp_path, [ADDITION, WAIT, DONE])
    await restarted.agent.run()
    assert restarted.aggregator.additions == killed.aggregator.additions
    assert restarted.model.condensed == []


async def test_a_context_contribution_whose_answer_was_lost_is_sent_to_its_round_and_not_added(tmp_path: Path) -> None:
    killed = FakeFederation(tmp_path, [JOIN, CONTEXT])
    killed.aggregator.submission_errors = [Interrupted()]
    with pytest.raises(Interrupted):
        await killed.agent.run()
    restarted = FakeFederation(tmp_path, [WAIT, DONE])
    await restarted.agent.run()
    assert restarted.aggregator.submissions == killed.aggregator.submissions
    assert restarted.aggregator.additions == []


async def test_an_addition_that_comes_too_early_is_sent_again_without_more_work(tmp_path: Path) -> None:
    await FakeFederation(tmp_path, [JOIN, CONTEXT, DONE]).agent.run()
    grown = FakeFederation(tmp_path, [WAIT, WAIT, WAIT, DONE])
    grown.aggregator.addition_errors = [WrongState("the context round has not closed")] * 2
    grown.append_to_data_file("new")
    await grown.agent.run()
    assert len(grown.aggregator.additions) == 3
    assert len(set(grown.aggregator.additions)) == 1
    assert grown.model.condensed == [1]


async def test_a_data_file_that_is_half_written_does_not_end_a_running_agent(tmp_path: Path) -> None:
    await FakeFederation(tmp_path, [JOIN, CONTEXT, DONE]).agent.run()
    federation = FakeFederation(tmp_path, [WAIT, DONE])
    federation.append_to_data_file("half a li")
    federation.read_error = BadData("line 7")
    assert await federation.agent.run() is TaskState.FINISHED


async def test_a_recreated_task_of_the_same_name_gets_all_demonstrations_again(tmp_path: Path) -> None:
    await FakeFederation(tmp_path, [JOIN, CONTEXT, DONE]).agent.run()
    again = FakeFederation(tmp_path, [JOIN, ADDITION, DONE])
    await again.agent.run()
    assert examples(again.aggregator.additions) == [6]
    assert again.state.sent_count == 6


async def test_an_aggregator_that_asks_for_one_text_more_each_time_gets_one_vector(tmp_path: Path) -> None:
    for most in (3, 4, 5, 6):
        requested = [
            assignment(kind, 1, task=brief(max_demonstrations=most)) for kind in (AssignmentKind.JOIN, AssignmentKind.CONTEXT)
        ]
        federation = FakeFederation(tmp_path, [*requested, DONE], client=f"renamed-{most}")
        if most == 3:
            await federation.agent.run()
            assert examples([body for _, body in federation.aggregator.submissions]) == [3]
        else:
            with pytest.raises(CannotTakePart, match="RepeatedContext: the context vector of 3 texts was sent"):
                await federation.agent.run()
            assert federation.aggregator.submissions == []


async def test_additions_wait_until_they_are_enough(tmp_path: Path) -> None:
    await FakeFederation(tmp_path, [JOIN, CONTEXT, DONE], min_examples=2).agent.run()
    grown = FakeFederation(tmp_path, [WAIT, WAIT, DONE], min_examples=2)
    grown.append_to_data_file("new")
    await grown.agent.run()
    assert grown.aggregator.additions == []
    grown = FakeFederation(tmp_path, [WAIT, DONE], min_examples=2)
    grown.append_to_data_file("new", "newer")
    await grown.agent.run()
    assert examples(grown.aggregator.additions) == [2]


class Interrupted(Exception):
    """The agent's process is killed here."""
