"""The agent joins late, sends what its data file has more than before, nothing twice, and leaves when its organisation withdrew."""

from __future__ import annotations

from pathlib import Path

import pytest

from ifed.errors import BadData, WrongState
from ifed.messages.bodies import ContextBody
from ifed.messages.enums import AssignmentKind, TaskState
from services.client_agent.demonstrations import Demonstration, Split, split
from services.client_agent.state import Memory, hash_of
from services.client_agent.status import Activity
from tests.unit.client_agent.test_agent import DONE, SPLIT, TASK, WHOLE_TASK, Setting, assignment

JOIN, CONTEXT, WAIT = (assignment(kind, 1) for kind in (AssignmentKind.JOIN, AssignmentKind.CONTEXT, AssignmentKind.WAIT))
ADDITION = assignment(AssignmentKind.ADDITION)
ROOMY = TASK.model_copy(update={"policy": TASK.policy.model_copy(update={"max_demonstrations": 100})})


def roomy(*script: object) -> list[object]:
    """The assignments under a policy that takes all demonstrations."""
    return [one.model_copy(update={"task": ROOMY}) if hasattr(one, "task") else one for one in script]


def setting(folder: Path, *script: object) -> Setting:
    if not (folder / "data").exists():
        (folder / "data").touch()
    return Setting(folder, roomy(*script))  # type: ignore[arg-type]


def grow(made: Setting, folder: Path, *texts: str) -> None:
    """The data file gets more rows, which the next reading finds."""
    (folder / "data").write_text("\n".join(texts))
    made.split = Split(SPLIT.training + tuple(Demonstration(text, 0) for text in texts), SPLIT.holdout)


def examples(body: bytes) -> int:
    return ContextBody.from_bytes(body).meta.examples


async def test_a_late_joiner_sends_all_its_demonstrations_as_an_addition(tmp_path: Path) -> None:
    made = setting(tmp_path, JOIN, ADDITION, WAIT, DONE)
    assert await made.agent.run() is TaskState.FINISHED
    assert [examples(body) for body in made.aggregator.additions] == [6]
    assert made.aggregator.sent == []
    assert made.status.contributions == 1


async def test_a_restarted_agent_whose_file_has_grown_sends_what_is_new(tmp_path: Path) -> None:
    first = setting(tmp_path, JOIN, CONTEXT, DONE)
    await first.agent.run()
    again = setting(tmp_path, WAIT, DONE)
    grow(again, tmp_path, "new", "newer")
    await again.agent.run()
    assert [examples(body) for body in again.aggregator.additions] == [2]
    assert again.aggregator.joins[-1].label_counts == {"no": 5, "yes": 3}
    third = setting(tmp_path, WAIT, DONE)
    third.split = again.split
    await third.agent.run()
    assert (third.aggregator.additions, third.prepared) == ([], 0)


async def test_a_running_agent_notices_by_itself_that_its_file_has_grown(tmp_path: Path) -> None:
    made = setting(tmp_path, JOIN, CONTEXT, WAIT)
    with pytest.raises(IndexError):  # the script is over
        await made.agent.run()
    made.aggregator.script = roomy(WAIT, WAIT, DONE)  # type: ignore[assignment]
    grow(made, tmp_path, "new")
    await made.agent.run()
    assert [examples(body) for body in made.aggregator.additions] == [1]


async def test_a_finished_task_still_gets_what_is_new(tmp_path: Path) -> None:
    await setting(tmp_path, JOIN, CONTEXT, DONE).agent.run()
    again = setting(tmp_path, DONE)
    grow(again, tmp_path, "new")
    assert await again.agent.run() is TaskState.FINISHED
    assert [examples(body) for body in again.aggregator.additions] == [1]


async def test_no_more_than_the_policy_takes_are_sent(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    first = Setting(tmp_path, [JOIN, CONTEXT, DONE])
    await first.agent.run()
    again = Setting(tmp_path, [DONE])
    grow(again, tmp_path, "new")
    await again.agent.run()
    assert [examples(body) for _, body in first.aggregator.sent] == [TASK.policy.max_demonstrations]
    assert again.aggregator.additions == []


async def test_an_addition_whose_answer_was_lost_is_sent_again_as_the_same_bytes_and_once(tmp_path: Path) -> None:
    lost = setting(tmp_path, JOIN, ADDITION)
    lost.aggregator.addition_refusals = [Forgotten("gone")]
    with pytest.raises(Forgotten):
        await lost.agent.run()
    again = setting(tmp_path, ADDITION, WAIT, DONE)
    await again.agent.run()
    assert again.aggregator.additions == lost.aggregator.additions
    assert again.worker.condensed == []


async def test_a_context_contribution_whose_answer_was_lost_is_not_added_a_second_time(tmp_path: Path) -> None:
    lost = setting(tmp_path, JOIN, CONTEXT)
    lost.aggregator.refusals = [Forgotten("gone")]
    with pytest.raises(Forgotten):
        await lost.agent.run()
    again = setting(tmp_path, WAIT, DONE)  # the aggregator had it
    await again.agent.run()
    assert again.aggregator.sent == lost.aggregator.sent
    assert again.aggregator.additions == []


async def test_an_addition_that_comes_too_early_waits_and_is_sent_when_it_can_be(tmp_path: Path) -> None:
    await setting(tmp_path, JOIN, CONTEXT, DONE).agent.run()
    again = setting(tmp_path, WAIT, WAIT, WAIT, DONE)
    again.aggregator.addition_refusals = [WrongState("the context round has not closed")] * 2
    grow(again, tmp_path, "new")
    await again.agent.run()
    assert len(again.aggregator.additions) == 3
    assert len(set(again.aggregator.additions)) == 1
    assert again.worker.condensed == [1]


async def test_a_file_that_cannot_be_read_now_ends_nothing(tmp_path: Path) -> None:
    await setting(tmp_path, JOIN, CONTEXT, DONE).agent.run()
    again = setting(tmp_path, WAIT, DONE)
    grow(again, tmp_path, "half a li")

    async def prepare(*_: object) -> None:
        raise BadData("line 7")

    again.agent._prepare = prepare  # type: ignore[assignment]  # our own agent, as a file being written looks to it
    assert await again.agent.run() is TaskState.FINISHED


async def test_an_agent_of_an_organisation_that_withdrew_leaves(tmp_path: Path) -> None:
    made = setting(tmp_path, *WHOLE_TASK[:3], assignment(AssignmentKind.WITHDRAWN))
    await made.agent.run()
    assert (made.status.activity, made.status.note) == (Activity.DONE, "withdrawn from the task")


async def test_a_task_of_the_same_name_that_begins_anew_is_told_everything_again(tmp_path: Path) -> None:
    await setting(tmp_path, JOIN, CONTEXT, DONE).agent.run()
    again = setting(tmp_path, JOIN, ADDITION, DONE)
    await again.agent.run()
    assert [examples(body) for body in again.aggregator.additions] == [6]
    assert Memory(tmp_path, task="sentiment", client="me").count == 6


def test_what_was_learned_is_never_held_out_later() -> None:
    rows = [Demonstration(f"text {number}", number % 2) for number in range(40)]
    before = split(rows, holdout=0.2, max_holdout=100)
    learned = {hash_of(one) for one in before.training}
    more = rows + [Demonstration(f"more {number}", number % 2) for number in range(200)]
    after = split(more, holdout=0.2, max_holdout=100, learned=lambda one: hash_of(one) in learned)
    assert not {hash_of(one) for one in after.holdout} & learned
    assert len(after.holdout) == 48


def test_the_memory_holds_hashes_and_no_text(tmp_path: Path) -> None:
    memory = Memory(tmp_path, task="t", client="c")
    memory.intend(b"body", [Demonstration("PATIENT JANE DOE", 0)])
    kept = "".join(path.read_text() for path in (tmp_path / "t--c").iterdir())
    assert "JANE" not in kept


class Forgotten(Exception):
    """An answer that never came, and an agent that dies with it."""
