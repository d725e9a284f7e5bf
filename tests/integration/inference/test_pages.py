"""Blocks of the how-to pages on serving are run word by word, but for the address, the model's size and an elided token."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from testing.servers import free_port
from tests.house.documents import FENCE, document
from tests.integration.inference.conftest import KEY, LABELS, Running, adapter_body, put

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl, which this machine does not have")
RUN_HERE = {
    "how-to-serve-without-an-aggregator": ("mkdir -p secrets", "ADAPTER_FOLDER=", "ifed classify"),
    "how-to-serve": ("export IFED_TOKEN=ifed_", "curl -s", "ifed classify", "import asyncio, os", "import os"),
    "how-to-roll-back": ("ifed classify sentiment@1", "ifed export", "cp adapters"),  # of the second its last line
    "how-to-monitor": ("curl -s http://127.0.0.1:8081/readyz", "curl -s http://127.0.0.1:8081/metrics"),
    "how-to-bring-your-own-model": ("curl -s http://127.0.0.1:8081/info",),
}
ELSEWHERE = {  # with what runs it or stands in the way
    "how-to-serve-without-an-aggregator": {"export IFED_AGGREGATOR_URL": "an aggregator: test_serving_follows"},
    "how-to-serve": {
        "export IFED_AGGREGATOR_URL": "an aggregator: test_client_commands",
        "ifed client enrol shop": "likewise",
        "AGGREGATOR_URL=": "an aggregator with a task: test_serving_follows",
    },
    "how-to-roll-back": {
        "ifed task show": "an aggregator: test_task_commands",
        "ifed task rollback": "likewise",
        "ifed task resume": "likewise",
        "ifed task ledger": "likewise",
    },
    "how-to-monitor": {".venv/bin/python -m pip": "an installation from the package index"},
    "how-to-bring-your-own-model": {"ifed model list": "a download", "AGGREGATOR_URL=": "an aggregator with a task"},
}


def blocks(page: str) -> list[str]:
    return [match["body"] for match in FENCE.finditer(document(f"docs/{page}.md").text) if match["language"] in ("bash", "python")]


def block(page: str, beginning: str) -> str:
    """The one block of a page that begins so."""
    assert beginning in RUN_HERE[page]
    (block_,) = (block_ for block_ in blocks(page) if block_.startswith(beginning))
    return block_


@pytest.mark.parametrize("page", RUN_HERE)
def test_every_block_of_a_page_is_run_here_or_says_why_not(page: str) -> None:
    known = (*RUN_HERE[page], *ELSEWHERE[page])
    counts = [sum(block.startswith(beginning) for beginning in known) for block in blocks(page)]
    assert counts == [1] * len(known), f"docs/{page}.md: {blocks(page)}"


class Shell:
    """Someone at a terminal in a folder, whose `python` and `ifed` are those of the tests."""

    def __init__(self, folder: Path, url: str, **variables: str) -> None:
        self.folder, self._url = folder, url
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        kept = {name: os.environ[name] for name in ("HOME", "LANG", "PYTHONPATH", "TMPDIR") if name in os.environ}
        own = {"PATH": path, "IFED_INFERENCE_URL": url, "NO_PROXY": "127.0.0.1", "COLUMNS": "160"}
        self.environment = kept | own | variables

    def run(self, words: str, *program: str) -> str:
        """What a block prints; every line of it must succeed."""
        words = words.replace("http://127.0.0.1:8081", self._url).replace("127.0.0.1:8081", self._url.removeprefix("http://"))
        done = subprocess.run(
            [*(program or ("bash", "-euo", "pipefail")), "-c", words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, f"{words}\n{done.stderr}"
        return done.stdout


@contextmanager
def started(shell: Shell, words: str, url: str) -> Iterator[None]:
    """A service that a block starts, ready; stopped with what it started."""
    log = shell.folder / "service.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            ["bash", "-c", words],
            cwd=shell.folder,
            env=shell.environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        ends = time.monotonic() + 120
        while time.monotonic() < ends:
            assert process.poll() is None, log.read_text()
            try:
                if httpx.get(f"{url}/readyz", trust_env=False).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        else:
            pytest.fail(f"not ready: {log.read_text()}")
        yield
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)


@needs_curl
def test_a_service_without_an_aggregator_is_started_asked_and_given_another_version(
    running: Running, small_model: Path, tmp_path: Path
) -> None:
    page = "how-to-serve-without-an-aggregator"
    (tmp_path / "adapters").mkdir()
    for version, seed in ((1, 11), (2, 12)):  # as `ifed export --adapter` leaves them
        put(tmp_path / "adapters", adapter_body(running.lm, "sentiment", version, seed=seed))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    shell = Shell(tmp_path, url, PORT=str(port), DTYPE="float32", THREADS="1", DRAIN_SECONDS="5")
    shell.run(block(page, "mkdir -p secrets"))
    keys = tmp_path / "secrets" / "keys"
    assert keys.stat().st_mode & 0o077 == 0, "nobody else reads the keys"
    with started(shell, block(page, "ADAPTER_FOLDER=").replace("smollm2-135m", str(small_model)), url):
        assert any(label in shell.run(block(page, "ifed classify")) for label in LABELS)
        shell.environment["SERVICE_KEY"] = keys.read_text().split()[1]
        page = "how-to-roll-back"
        asking = block(page, "ifed export").splitlines()[1]
        assert json.loads(shell.run(asking))["adapter_version"] == 2
        shell.run(block(page, "cp adapters"))
        ends = time.monotonic() + 10  # served within a second, as test_serving.py holds; here the machine may be busy
        while json.loads(shell.run(asking))["adapter_version"] != 1:
            assert time.monotonic() < ends, "the file that was replaced is not served"
            time.sleep(0.2)


@needs_curl
def test_a_running_service_is_asked_pinned_and_watched_as_the_pages_say(running: Running, tmp_path: Path) -> None:
    shell = Shell(tmp_path, running.url, IFED_TOKEN=KEY)
    asking = re.sub(r"export IFED_TOKEN=ifed_…\n", "", block("how-to-serve", "export IFED_TOKEN=ifed_"))
    answer = json.loads(shell.run(asking))
    assert [result["label"] in LABELS for result in answer["data"]] == [True, True]
    several = json.loads(shell.run(block("how-to-serve", "curl -s")))
    assert [result["model"] for result in several["data"]] == ["sentiment", "topic"]
    (tmp_path / "reviews.csv").write_text("id,text\n1,good\n2,bad\n")
    shell.run(block("how-to-serve", "ifed classify"))
    assert len((tmp_path / "labels.jsonl").read_text().splitlines()) == 2
    *table, pinned = shell.run(block("how-to-roll-back", "ifed classify sentiment@1")).splitlines()
    assert any(label in line for line in table for label in LABELS)
    assert json.loads(pinned)["adapter_version"] == 1
    assert json.loads(shell.run(block("how-to-monitor", "curl -s http://127.0.0.1:8081/readyz")))["ready"] is True
    assert "ifed_inference_requests_total" in shell.run(block("how-to-monitor", "curl -s http://127.0.0.1:8081/metrics"))
    about = json.loads(shell.run(block("how-to-bring-your-own-model", "curl -s http://127.0.0.1:8081/info")))
    assert (about["model_sha"], about["model_int8"]) == (running.lm.fingerprint, False)


def test_the_pages_python_asks_a_running_service(running: Running, tmp_path: Path) -> None:
    shell = Shell(tmp_path, running.url, IFED_TOKEN=KEY)
    lines = shell.run(block("how-to-serve", "import asyncio, os"), sys.executable).splitlines()
    assert len(lines) == 3, lines
    assert lines[1] in LABELS
    public = shell.run(block("how-to-serve", "import os"), sys.executable)
    assert "TextClassificationOutputElement(label=" in public
