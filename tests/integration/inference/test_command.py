"""`ifed classify`: every kind of input, a progress bar on a terminal, and a killed run that resumes."""

from __future__ import annotations

import csv
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from typer.testing import CliRunner

from ifed.cli.main import app
from tests.integration.inference.conftest import KEY, LABELS, Running

TEXTS = [f"{'good' if n % 3 else 'bad'} film number {n}" for n in range(70)]


def words(running: Running, *arguments: str) -> list[str]:
    return ["classify", "sentiment", *arguments, "--inference", running.url, "--token", KEY]


def run(running: Running, *arguments: str, stdin: str | None = None) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(app, words(running, *arguments), input=stdin)


def command(running: Running, *arguments: str) -> list[str]:
    """Return the command line of a process of its own."""
    return [sys.executable, "-m", "ifed.cli", *words(running, *arguments)]


def rows(lines: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.splitlines()]


def written(folder: Path, kind: str) -> Path:
    path = folder / f"reviews.{kind}"
    if kind == "csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["id", "review"], *enumerate(TEXTS)])
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"review": text}) + "\n" for text in TEXTS))
    else:
        pq.write_table(pa.table({"id": list(range(len(TEXTS))), "review": TEXTS}), path)
    return path


def test_texts_on_the_command_line_are_shown_as_a_table(running: Running) -> None:
    done = subprocess.run(command(running, "I liked it", "bad"), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "I liked it" in done.stdout
    assert any(label in done.stdout for label in LABELS)


def test_a_text_that_cannot_be_classified_fails_no_other_and_ends_the_command_with_1(running: Running) -> None:
    done = run(running, "--json", "good", "")
    assert (done.exit_code, "1 could not be classified" in done.stderr) == (1, True)
    good, empty = rows(done.stdout)
    assert (good["label"] in LABELS, empty["label"], "error" in empty) == (True, None, True)


def test_a_finished_file_with_a_text_that_was_refused_ends_with_1_again(running: Running, tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text('text\ngood\n" "\n', encoding="utf-8")
    for _ in range(2):
        done = run(running, "--file", str(tmp_path / "texts.csv"), "--out", str(tmp_path / "rows"))
        assert done.exit_code == 1, done.stderr
        assert "1 text classified, in" in done.stderr
        assert "1 could not be classified" in done.stderr


def test_standard_input_has_a_text_on_each_line_and_gives_json_lines(running: Running) -> None:
    answers = rows(run(running, "--json", stdin="good\n\nbad film\n").stdout)
    assert [(row["row"], row["text"], row["task"], row["version"]) for row in answers] == [
        (0, "good", "sentiment", 2),
        (1, "bad film", "sentiment", 2),
    ]
    assert all(sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-4) for row in answers)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_column_of_a_file_comes_out_in_its_order(running: Running, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "labels.jsonl"
    done = run(running, "--file", str(written(tmp_path, kind)), "--column", "review", "--out", str(out))
    assert done.exit_code == 0, done.stderr
    assert "70 texts classified" in " ".join(done.stderr.split())
    answers = rows(out.read_text())
    assert [row["text"] for row in answers] == TEXTS
    assert [row["row"] for row in answers] == list(range(70))


def test_a_killed_run_resumes_where_it_was(running: Running, tmp_path: Path) -> None:
    """The texts come through a pipe that is held open, so that the first run is killed in the middle, whatever the machine's speed."""
    out, texts = tmp_path / "labels.jsonl", [f"{text} again {n}" for n in range(4) for text in TEXTS]
    first = subprocess.Popen(command(running, "--out", str(out)), stdin=subprocess.PIPE, text=True)
    assert first.stdin is not None
    try:
        first.stdin.write("".join(f"{text}\n" for text in texts[:200]))
        first.stdin.flush()
        end = time.monotonic() + 60
        while not out.exists() or not out.read_text().count("\n"):
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
        first.stdin.close()
    before = out.read_text()
    assert 0 < before.count("\n") < len(texts)
    out.write_text(before + '{"row": 1')  # what a kill in the middle of a line leaves
    done = run(running, "--out", str(out), stdin="".join(f"{text}\n" for text in texts))
    assert done.exit_code == 0, done.stderr
    assert out.read_text().startswith(before)
    assert [(row["row"], row["text"]) for row in rows(out.read_text())] == list(enumerate(texts))


def test_a_terminal_shows_the_progress(running: Running, tmp_path: Path) -> None:
    file, out = written(tmp_path, "parquet"), tmp_path / "labels.jsonl"
    arguments = command(running, "--file", str(file), "--column", "review", "--out", str(out))
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            arguments, stdout=subprocess.PIPE, stderr=theirs, check=False, timeout=120, env=os.environ | {"TERM": "xterm"}
        )
        os.close(theirs)
        shown = os.read(ours, 100_000).decode(errors="replace")
    finally:
        os.close(ours)
    assert done.returncode == 0
    assert "70/70" in shown


def test_an_unknown_column_and_the_output_of_another_task_are_refused(running: Running, tmp_path: Path) -> None:
    refused = run(running, "--file", str(written(tmp_path, "csv")), "--column", "words")
    assert refused.exit_code != 0
    assert "no column 'words'; it has id, review" in " ".join(f"{refused.output} {refused.exception}".split())
    out = tmp_path / "labels.jsonl"
    out.write_text('{"row": 0, "task": "another"}\n')
    refused = run(running, "good", "--out", str(out))
    assert refused.exit_code != 0
    assert out.read_text() == '{"row": 0, "task": "another"}\n'
