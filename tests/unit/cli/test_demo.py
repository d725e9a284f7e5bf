"""The demo reads its corpora right, tells what happens, and adds its figures up."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from ifed.cli.console import size
from ifed.cli.demo import corpora, demo_texts
from ifed.cli.demo.corpora import Organisation
from ifed.cli.demo.display import AgentView, Snapshot, draw, lines
from ifed.cli.demo.measure import Accuracy, Outcome
from ifed.cli.demo.presets import PRESETS, preset_for
from ifed.cli.demo.stack import ServiceDied, Stack
from ifed.cli.main import app
from ifed.errors import BadData, LayoutMismatch
from ifed.messages.enums import HeadQuestion, RoundKind, RoundState, TaskState
from ifed.messages.rounds import ClientProgress, Evaluation, Member, RoundInfo, TaskInfo
from ifed.messages.tasks import TaskSpec
from ifed.messages.texts import LabelledText
from tests.house.promises import setting_names

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def round_of(number: int, kind: RoundKind, *, seconds: float | None, version: int | None = None, sent: int = 100) -> RoundInfo:
    closed = None if seconds is None else NOON + timedelta(seconds=60 * number + seconds)
    return RoundInfo(
        task="sentiment",
        number=number,
        kind=kind,
        state=RoundState.CLOSED if closed else RoundState.OPEN,
        opened_at=NOON + timedelta(seconds=60 * number),
        deadline=NOON + timedelta(hours=1),
        closed_at=closed,
        expected=["tweets"],
        missing=[],
        clients=[
            ClientProgress(client="tweets", contributed_at=closed, bytes_up=sent if closed else None, loss=0.5, accuracy=0.75)
        ],
        loss=0.5,
        evaluation=None if version is None else Evaluation(version=version, accuracy=0.8, macro_f1=0.79, examples=10),
    )


def task_of(rounds: list[RoundInfo], *, joined: bool = True) -> TaskInfo:
    member = Member(client="tweets", joined_at=NOON, label_counts={"negative": 3, "positive": 4}, holdout=2)
    return TaskInfo(
        spec=TaskSpec(name="sentiment", labels=["negative", "positive"], template="{text}\nSentiment:", model="tiny", groups=4),
        state=TaskState.RUNNING,
        created_at=NOON,
        identity=None,
        layout=None,
        members=[member] if joined else [],
        round=rounds[-1] if rounds else None,
        evaluations=[round_.evaluation for round_ in rounds if round_.evaluation],
    )


def test_a_clear_cut_snippet_is_labelled_and_the_rest_is_dropped() -> None:
    texts = corpora._labelled("1\t2.1\tSo good &amp; true\r\n2\t-0.5\tmeh\r\n3\t0.49\tso so\r\n4\t0.5\tmeh\r\n")
    assert texts == [LabelledText("So good & true", "positive"), LabelledText("meh", "negative")]


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive of made-up snippets in the place of the one from the package index."""
    archive = tmp_path / "archive.tar.gz"
    with tarfile.open(archive, "w:gz") as members:
        for name in corpora.SOURCES.values():
            rows = "".join(f"{n}\t{(-1) ** n}.0\ttext {n} of {name}\r\n" for n in range(400)).encode()
            entry = tarfile.TarInfo(f"hutto_ICWSM_2014/{name}")
            entry.size = len(rows)
            members.addfile(entry, io.BytesIO(rows))
    monkeypatch.setattr(corpora, "fetch", lambda *_args, **_options: archive)


def test_no_test_text_stands_in_a_private_file(tmp_path: Path, fetched: None) -> None:
    people = corpora.organisations(tmp_path / "private", cache=tmp_path, examples=200, announce=print)
    assert [organisation.name for organisation in people] == list(corpora.SOURCES)
    for organisation in people:
        private = {json.loads(line)["text"] for line in organisation.file.read_text().splitlines()}
        assert (len(private), len(organisation.test)) == (200, 125)
        assert not private & {text.text for text in organisation.test}


def test_one_organisations_private_file_is_that_of_the_demo_and_made_once(tmp_path: Path, fetched: None) -> None:
    file = tmp_path / "data" / "texts.jsonl"
    file.parent.mkdir()
    demo_texts("tweets", file, cache=tmp_path)
    people = corpora.organisations(tmp_path / "private", cache=tmp_path, examples=200, announce=print)
    assert file.read_text() == people[0].file.read_text()
    assert list(file.parent.iterdir()) == [file], "nothing of the other organisations is left"
    file.write_text("my own")
    demo_texts("tweets", file, cache=tmp_path)
    assert file.read_text() == "my own"


def test_an_organisation_that_the_demo_does_not_have_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="no organisation 'sweets'; it has tweets, movie-reviews"):
        demo_texts("sweets", tmp_path / "texts.jsonl")


def test_output_that_is_no_terminal_tells_each_event_once() -> None:
    first = [round_of(1, RoundKind.CONTEXT, seconds=2)]
    before = Snapshot(task_of(first), first, {}, 0)
    assert lines(None, before) == [
        "tweets joined with 7 examples and 2 held out",
        "round 1 (context) closed after 2.0 s, loss 0.5000, 100 B up",
    ]
    second = [*first, round_of(2, RoundKind.CALIBRATION, seconds=5, version=0)]
    now = Snapshot(task_of(second), second, {}, 0)
    assert lines(before, now) == [
        "round 2 (calibration) closed after 5.0 s, loss 0.5000, accuracy of the base model 80.0 %, 100 B up"
    ]
    assert lines(now, now) == []


def test_the_rounds_of_a_label_head_share_a_line_when_the_last_has_closed() -> None:
    questions = (HeadQuestion.MOMENT, HeadQuestion.PRODUCT, HeadQuestion.LIKELIHOOD)
    head = [
        round_of(number, RoundKind.HEAD, seconds=2, version=0).model_copy(update={"question": question, "evaluation": None})
        for number, question in enumerate(questions, 2)
    ]
    assert lines(Snapshot(task_of([]), [], {}, 0), Snapshot(task_of(head[:2]), head[:2], {}, 0))[1:] == []
    told = lines(Snapshot(task_of(head[:2]), head[:2], {}, 0), Snapshot(task_of(head), head, {}, 0))
    assert told == ["rounds 2 to 4 (head) closed after 6.0 s, 300 B up"]


def test_the_display_shows_every_client_and_round() -> None:
    rounds = [round_of(1, RoundKind.CONTEXT, seconds=2), round_of(2, RoundKind.CALIBRATION, seconds=None, version=0)]
    screen = Console(width=140, record=True, file=io.StringIO())
    screen.print(
        draw(Snapshot(task_of(rounds), rounds, {"tweets": AgentView("calibrating", 3, 12, 400, 15_000, 40_000)}, time.monotonic()))
    )
    shown = screen.export_text()
    for words in ("tweets", "calibrating", "15.0 KB", "80.0 %", "round 2, calibration"):
        assert words in shown


def test_the_display_fits_80_columns_and_cuts_no_name() -> None:
    rounds = [round_of(1, RoundKind.CONTEXT, seconds=2), round_of(12, RoundKind.CALIBRATION, seconds=1234.5, version=0, sent=10**6)]
    agents = {name: AgentView("loading the model", 3, 12, 400, 15_000_000, 40_000_000) for name in corpora.SOURCES}
    screen = Console(width=80, record=True, file=io.StringIO(), force_terminal=True)
    screen.print(draw(Snapshot(task_of(rounds), rounds, agents, time.monotonic())))
    shown = screen.export_text()
    assert all(name in shown for name in corpora.SOURCES)
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80


def outcome() -> Outcome:
    people = [Organisation(name, Path(name), 10, (LabelledText("a", "negative"),)) for name in ("tweets", "editorials")]
    return Outcome(
        people,
        base={"tweets": Accuracy(1, 2), "editorials": Accuracy(1, 4)},
        federated={"tweets": Accuracy(2, 2), "editorials": Accuracy(3, 4)},
        alone=None,
    )


def test_overall_accuracy_counts_texts_not_organisations() -> None:
    assert Accuracy.over([Accuracy(1, 2), Accuracy(1, 4)]).share == pytest.approx(2 / 6)


def test_the_summary_holds_what_others_read() -> None:
    rounds = [
        round_of(1, RoundKind.CONTEXT, seconds=2, sent=34_000),
        round_of(2, RoundKind.CALIBRATION, seconds=5, version=0, sent=15_000),
        round_of(3, RoundKind.EVALUATION, seconds=1, version=1),
    ]
    summary = outcome().summary(task_of(rounds), rounds)
    assert summary["zero_shot_accuracy"] == pytest.approx(2 / 6)
    assert summary["federated_accuracy"] == pytest.approx(5 / 6)
    assert "local_accuracy" not in summary
    assert summary["rounds"] == 1
    assert summary["seconds_rounds"] == 121.0
    assert summary["bytes_up_per_client_per_round"] == 15_000
    assert summary["bytes_context_vector"] == 34_000
    assert summary["per_organisation"]["editorials"]["federated_accuracy"] == 0.75
    json.dumps(summary)


def test_the_comparison_with_each_alone_is_shown_when_it_was_made() -> None:
    screen = Console(width=140, record=True, file=io.StringIO())
    screen.print(outcome().table())
    assert "calibrated alone" not in screen.export_text()


def test_a_preset_takes_what_was_given_and_keeps_the_rest() -> None:
    preset = preset_for("smollm2-135m").changed(rounds=2, groups=None)
    assert (preset.rounds, preset.groups) == (2, PRESETS["smollm2-135m"].groups)
    with pytest.raises(LayoutMismatch, match="--layers takes"):
        preset.changed(layers="some")


def test_an_unknown_model_gets_one_group_which_divides_any_size() -> None:
    assert preset_for("somebody/some-model").groups == 1


def test_sizes_read_as_people_write_them() -> None:
    assert [size(None), size(999), size(15_720), size(2_500_000)] == ["–", "999 B", "15.7 KB", "2.5 MB"]


def module(folder: Path, name: str, source: str) -> str:
    (folder / f"{name}.py").write_text(source)
    return name


def test_a_service_that_dies_is_noticed_with_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with Stack(tmp_path / "logs") as stack:
        service = stack.start("agent", module(tmp_path, "dies", "import sys; sys.exit('the data file is missing')"), {})
        service.process.wait(20)
        with pytest.raises(ServiceDied, match="the data file is missing"):
            stack.check()


def test_leaving_the_stack_ends_every_process_even_one_that_will_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr("ifed.cli.demo.stack.GRACE_SECONDS", 0.5)
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    with Stack(tmp_path / "logs") as stack:
        service = stack.start("stubborn", module(tmp_path, "stubborn", stubborn), {})
        while "up" not in service.last_words():
            time.sleep(0.05)
    assert service.code == -signal.SIGKILL


def test_a_stack_passes_on_no_setting_of_a_deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in setting_names():
        monkeypatch.setenv(name, "of-the-deployment")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("HF_HOME", "/models")
    with Stack(tmp_path / "logs") as stack:
        show = "import json, os; print(json.dumps(dict(os.environ)))"
        service = stack.start("environment", module(tmp_path, "shows", show), {"MODEL": "chosen"})
        service.process.wait(20)
        environment = json.loads(service.log.read_text())
    assert "of-the-deployment" not in environment.values()
    assert environment["HF_HOME"] == "/models"
    assert (environment["MODEL"], environment["HOST"]) == ("chosen", "127.0.0.1")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["demo", "--help"], ["task", "--help"], ["client", "enrol", "--help"], ["version"]]
)
def test_every_command_explains_itself(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.output.strip()


def test_an_unreachable_service_is_one_line_and_an_exit_code() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ifed.cli", "classify", "sentiment", "text", "--inference", "http://127.0.0.1:1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Unavailable http://127.0.0.1:1 cannot be reached")
    assert "Traceback" not in done.stderr
