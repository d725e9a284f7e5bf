"""A crash at any point loses no contribution and sends none twice under another digest."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from ifed.errors import RepeatedContext
from ifed.messages.texts import LabelledText
from services.client_agent.demonstrations import Split
from services.client_agent.state import AgentState, DataFileWatcher, ErrorFeedback, ReleasedTexts, hash_of

ONE, TWO = LabelledText("first text", 0), LabelledText("second text", 1)


def state_in(folder: Path) -> AgentState:
    """Return the state as an agent reads it when it starts."""
    return AgentState(folder, task="sentiment", client="me")


def names(folder: Path) -> list[str]:
    return sorted(path.name.split("-")[0] for path in (folder / "sentiment--me").iterdir())


def test_a_contribution_begun_before_a_crash_is_read_after_it(tmp_path: Path) -> None:
    state_in(tmp_path).begin(2, b"update", key="k" * 64)
    restarted = state_in(tmp_path)
    assert restarted.finished(2, "k" * 64) == b"update"
    assert restarted.finished(2, "other") is None
    assert restarted.finished(3, "k" * 64) is None


def test_only_the_owner_can_read_what_an_agent_keeps(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        state_in(tmp_path / "agent").begin(2, b"update", key="key")
    finally:
        os.umask(before)
    paths = [tmp_path / "agent", *(tmp_path / "agent").rglob("*")]
    assert sorted(oct(path.stat().st_mode & 0o777) for path in paths) == ["0o600", "0o700", "0o700"]


def test_a_settled_round_deletes_the_contributions_up_to_it(tmp_path: Path) -> None:
    state = state_in(tmp_path)
    for round_ in (2, 3, 10):
        state.begin(round_, b"update", key="key")
    state.settle(3, b"update", received=False)
    assert [round_ for round_ in (2, 3, 10) if state.finished(round_, "key")] == [10]


def test_a_context_body_is_unanswered_from_begin_to_settle_also_after_a_restart(tmp_path: Path) -> None:
    state_in(tmp_path).begin(1, b"context", key="key", demonstrations=[ONE, TWO])
    restarted = state_in(tmp_path)
    assert restarted.awaits_answer
    assert restarted.unanswered() == [(1, b"context")]
    assert restarted.sent_hashes == {hash_of(ONE), hash_of(TWO)}
    restarted.settle(1, b"context", received=True, data_file=[7, 8])
    again = state_in(tmp_path)
    assert (again.awaits_answer, again.unanswered(), again.sent_count) == (False, [], 2)
    assert names(tmp_path) == ["condensed.json"]


def test_an_agent_killed_between_the_two_writes_of_begin_still_finds_its_contribution(tmp_path: Path) -> None:
    state_in(tmp_path).begin(1, b"context", key="key")  # as if killed before the demonstrations were written down
    restarted = state_in(tmp_path)
    assert (restarted.finished(1, "key"), restarted.awaits_answer) == (b"context", False)
    restarted.begin(1, b"context", key="key", demonstrations=[ONE])
    assert restarted.unanswered() == [(1, b"context")]


def test_a_refused_context_body_counts_as_never_sent(tmp_path: Path) -> None:
    state = state_in(tmp_path)
    state.begin(None, b"addition", demonstrations=[ONE])
    state.settle(None, b"addition", received=False, data_file=[7, 8])
    assert state_in(tmp_path).unsent([ONE, TWO]) == [ONE, TWO]
    assert not state_in(tmp_path).may_have_more([9, 9])


def test_a_context_round_replaces_what_was_sent_before_and_an_addition_does_not(tmp_path: Path) -> None:
    state = state_in(tmp_path)
    state.begin(1, b"context", key="key", demonstrations=[ONE])
    state.settle(1, b"context", received=True)
    state.begin(None, b"addition", demonstrations=[TWO])
    assert state.sent_count == 2
    state.begin(4, b"context of a recreated task", key="key", demonstrations=[TWO])
    assert state_in(tmp_path).sent_hashes == {hash_of(TWO)}
    assert state_in(tmp_path).unanswered() == [(4, b"context of a recreated task")]


def test_a_text_that_occurs_twice_in_the_data_file_counts_twice(tmp_path: Path) -> None:
    state = state_in(tmp_path)
    state.begin(None, b"addition", demonstrations=[ONE])
    assert state.unsent([ONE, TWO, ONE]) == [TWO, ONE]


def test_the_state_directory_holds_hashes_and_no_text(tmp_path: Path) -> None:
    state_in(tmp_path).begin(None, b"body", demonstrations=[LabelledText("PATIENT JANE DOE", 0)])
    assert "JANE" not in "".join(path.read_text() for path in (tmp_path / "sentiment--me").iterdir())


def test_the_state_of_an_earlier_release_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "sentiment--me"
    folder.mkdir()
    sent = {"d" * 64: {"demonstrations": [hash_of(ONE)], "body": "context-dd.safetensors", "round": 1}}
    (folder / "condensed.json").write_text(json.dumps({"file": [3, 4], "sent": sent}))
    (folder / "context-dd.safetensors").write_bytes(b"context")
    (folder / "round-1-0123456789abcdef.safetensors").write_bytes(b"context")
    state = state_in(tmp_path)
    assert state.unanswered() == [(1, b"context")]
    assert state.finished(1, "0123456789abcdef" + "0" * 48) == b"context"
    assert state.unsent([ONE, TWO]) == [TWO]


def test_a_client_that_has_sent_nothing_waits_for_an_assignment_whatever_its_data_file_does(tmp_path: Path) -> None:
    assert not state_in(tmp_path).may_have_more([7, 8])


def test_a_changed_data_file_is_noticed_once(tmp_path: Path) -> None:
    data_file = tmp_path / "data.jsonl"
    watcher, state = DataFileWatcher(data_file), state_in(tmp_path)
    assert watcher.signature() == []
    data_file.write_text("one row")
    state.begin(1, b"context", key="key", demonstrations=[ONE])
    state.settle(1, b"context", received=True, data_file=watcher.signature())
    assert not watcher.has_new_data(state)
    data_file.write_text("one row, and another")
    assert watcher.has_new_data(state)
    assert not watcher.has_new_data(state)
    os.utime(data_file, ns=(1, 1))
    assert watcher.has_new_data(state)
    state.record_nothing_to_send(watcher.signature())
    assert not DataFileWatcher(data_file).has_new_data(state_in(tmp_path))


def quantize(feedback: ErrorFeedback, round_: int, *, version: int = 1) -> float:
    """Return the first entry of a change of 0.0035 quantised in steps of 0.01."""
    change = np.zeros((1, 2, 2, 2), np.float32)
    change[..., 0], change[..., 1] = 0.0035, 1.27
    return float(feedback.quantize(change, "int8", round_=round_, version=version).restored()[0, 0, 0, 0])


def test_the_error_of_an_update_is_carried_over_when_the_update_was_received(tmp_path: Path) -> None:
    feedback = ErrorFeedback(tmp_path)
    assert quantize(feedback, 2) == 0
    feedback.settle(2, received=True)
    restarted = ErrorFeedback(tmp_path)
    assert quantize(restarted, 3) == pytest.approx(0.01)
    restarted.settle(3, received=False)
    assert quantize(restarted, 4) == pytest.approx(0.01), "a refused update leaves the earlier error"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lost-4.safetensors", "lost.safetensors"]


def test_the_error_of_an_unsettled_update_is_not_carried_over(tmp_path: Path) -> None:
    quantize(ErrorFeedback(tmp_path), 2)
    assert quantize(ErrorFeedback(tmp_path), 3) == 0


@pytest.mark.parametrize("case", ["first version", "earlier task of this name", "unreadable file"])
def test_an_error_that_does_not_belong_to_the_update_is_ignored(tmp_path: Path, case: str) -> None:
    feedback = ErrorFeedback(tmp_path)
    quantize(feedback, 2)
    feedback.settle(2, received=True)
    if case == "unreadable file":
        (tmp_path / "lost.safetensors").write_bytes(b"cut off")
    round_ = 2 if case == "earlier task of this name" else 3
    assert quantize(feedback, round_, version=0 if case == "first version" else 1) == 0


def test_settling_a_contribution_settles_its_quantisation_error(tmp_path: Path) -> None:
    state = state_in(tmp_path)
    quantize(state.error_feedback, 2)
    state.begin(2, b"update", key="key")
    state.settle(2, b"update", received=True)
    assert names(tmp_path) == ["lost.safetensors"]


def texts(*numbers: int) -> tuple[LabelledText[int], ...]:
    return tuple(LabelledText(f"text {number}", number % 2) for number in numbers)


def data(*numbers: int) -> Split:
    """Return a data set with these training examples and one that is held out."""
    return Split(texts(*numbers), (LabelledText("held out", 0),))


def released_in(folder: Path, data_file: str = "data.csv") -> ReleasedTexts:
    """Return the texts released so far, as an agent with a floor of three reads them when it starts."""
    return ReleasedTexts(folder, task="sentiment", data_file=folder / data_file, fewest=3)


def send(folder: Path, split: Split, *, most: int = 100) -> tuple[LabelledText[int], ...]:
    """Choose and record the texts of a context vector, in an agent that has just started."""
    chosen = released_in(folder).choose(split, most=most)
    released_in(folder).record(chosen, split, most=most)
    return tuple(chosen)


def test_one_context_vector_over_all_texts_is_sent_again_and_no_other_subset(tmp_path: Path) -> None:
    assert send(tmp_path, data(*range(10))) == texts(*range(10))
    assert send(tmp_path, data(*range(10))) == texts(*range(10))
    for most in (1, 4, 9):
        with pytest.raises(RepeatedContext, match="10 texts was sent for this task, and now one of"):
            send(tmp_path, data(*range(10)), most=most)


def test_an_aggregator_that_asks_again_and_again_learns_one_sum(tmp_path: Path) -> None:
    answered = set()
    for most in range(3, 11):
        with suppress(RepeatedContext):
            answered.add(send(tmp_path, data(*range(10)), most=most))
    assert answered == {texts(0, 1, 2)}


def test_no_vector_is_sent_over_what_is_left_of_texts_that_were_taken_out(tmp_path: Path) -> None:
    send(tmp_path, data(*range(10)))
    with pytest.raises(RepeatedContext, match=r"1 of the 10 texts .* put them back"):
        send(tmp_path, data(*range(1, 10)))


def test_new_texts_of_a_grown_file_are_part_of_a_repeated_vector_only_if_they_are_enough(tmp_path: Path) -> None:
    send(tmp_path, data(*range(10)))
    for _ in range(2):
        assert send(tmp_path, data(*range(12))) == texts(*range(10))
    assert send(tmp_path, data(*range(13))) == texts(*range(13))
    assert send(tmp_path, data(*range(13))) == texts(*range(13))


def test_a_text_counts_as_sent_whatever_its_label_and_the_name_of_the_client(tmp_path: Path) -> None:
    send(tmp_path, data(*range(10)))
    swapped = Split(tuple(LabelledText(text.text, 1 - text.label) for text in texts(*range(9))), ())
    with pytest.raises(RepeatedContext):
        send(tmp_path, swapped)


def test_another_data_file_and_a_file_of_other_texts_are_free(tmp_path: Path) -> None:
    send(tmp_path, data(*range(10)))
    assert released_in(tmp_path, "other.csv").choose(data(*range(5)), most=100) == list(texts(*range(5)))
    assert send(tmp_path, data(*range(20, 25))) == texts(*range(20, 25))


def test_what_an_agent_of_an_earlier_release_sent_is_remembered(tmp_path: Path) -> None:
    released = released_in(tmp_path)
    released.adopt([[hash_of(text) for text in texts(*range(5))]], data(*range(10)), most=5)
    with pytest.raises(RepeatedContext):
        released_in(tmp_path).choose(data(*range(10)), most=4)


def test_the_file_of_released_texts_holds_hashes_alone(tmp_path: Path) -> None:
    send(tmp_path, data(*range(3)))
    (path,) = tmp_path.iterdir()
    assert "text " not in path.read_text()


def add(folder: Path, split: Split, *unsent: int) -> tuple[LabelledText[int], ...]:
    """Choose and record the texts of an addition."""
    chosen = released_in(folder).choose_addition(split, texts(*unsent), most=100)
    released_in(folder).record(chosen, split, most=100)
    return tuple(chosen)


def test_an_addition_that_was_refused_is_added_again_as_a_whole_and_with_enough_others(tmp_path: Path) -> None:
    send(tmp_path, data(*range(5)))
    assert add(tmp_path, data(*range(7)), 5, 6) == ()
    assert add(tmp_path, data(*range(8)), 5, 6, 7) == texts(5, 6, 7)
    assert add(tmp_path, data(*range(9)), 5, 6, 7, 8) == texts(5, 6, 7)
    assert add(tmp_path, data(*range(11)), 5, 6, 7, 8, 9, 10) == texts(5, 6, 7, 8, 9, 10)
    assert add(tmp_path, data(*range(11)), 6, 7, 8, 9, 10) == texts(8, 9, 10), "a part of a vector is not added"


def test_a_text_that_was_sent_is_known_after_a_restart(tmp_path: Path) -> None:
    send(tmp_path, data(*range(3)))
    assert [released_in(tmp_path).holds(text) for text in texts(2, 3)] == [True, False]
