"""Aggregator, agents and inference as processes of their own: a task from nothing to an answer, over HTTP alone."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from ifed.cli.demo.stack import Service, Stack
from ifed.clients import AggregatorClient, InferenceClient
from ifed.errors import NothingYet, Unauthenticated
from ifed.messages.enums import Role, RoundState, TaskState
from ifed.messages.rounds import TaskInfo
from ifed.messages.tasks import Policy, TaskSpec
from ifed.tensors.values import digest_of

ADMIN = "an-admin-token-for-tests"
LABELS = ["no", "yes"]
PEOPLE = ("north", "south")


def private_file(folder: Path, name: str) -> Path:
    rows = [{"text": f"{name} says {'good' if n % 2 else 'bad'} things number {n}", "label": LABELS[n % 2]} for n in range(24)]
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


class Federation:
    """The three apps on loopback, and what a test does with them."""

    def __init__(self, stack: Stack, folder: Path, model: Path, storage: Mapping[str, str]) -> None:
        self.stack, self.folder, self.model = stack, folder, model
        self.storage = {"ADMIN_TOKEN": ADMIN, "DATABASE_URL": f"sqlite+aiosqlite:///{folder / 'ifed.db'}"} | dict(storage)
        self.tokens: dict[str, str] = {}
        self.aggregator = self.start_aggregator()

    def start_aggregator(self, port: str | None = None) -> Service:
        settings = self.storage | ({"PORT": port} if port else {})
        service = self.stack.start("aggregator", "services.aggregator.app", settings)
        if port:
            service.url = f"http://127.0.0.1:{port}"
        self.stack.wait_ready(service, seconds=60)
        return service

    def admin(self) -> AggregatorClient:
        return AggregatorClient(self.aggregator.url, ADMIN)

    async def enrol(self) -> None:
        async with self.admin() as admin:
            self.tokens = {name: (await admin.enrol(name)).token for name in PEOPLE}
            self.tokens["reader"] = (await admin.enrol("reader", Role.READER)).token

    def start_agent(self, name: str) -> Service:
        settings = {
            "AGGREGATOR_URL": self.aggregator.url,
            "CLIENT_TOKEN": self.tokens[name],
            "TASK": "polarity",
            "DATA_FILE": str(private_file(self.folder, name)),
            "STATE_DIR": str(self.folder / "state"),
            "THREADS": "1",
            "WAIT_SECONDS": "2",
        }
        return self.stack.start(f"agent-{name}", "services.client_agent.app", settings)

    def start_inference(self) -> Service:
        settings = {
            "AGGREGATOR_URL": self.aggregator.url,
            "READER_TOKEN": self.tokens["reader"],
            "MODEL": str(self.model),
            "TASKS": "polarity",
        }
        return self.stack.start("inference", "services.inference.app", settings)

    async def create(self, **policy: object) -> None:
        spec = TaskSpec(
            name="polarity",
            labels=LABELS,
            template="{text}\nGood:",
            model=str(self.model),
            groups=4,
            policy=Policy.model_validate(
                {"clients_expected": 2, "rounds": 2, "local_steps": 3, "batch_size": 4, "max_holdout": 4} | policy
            ),
        )
        async with self.admin() as admin:
            await admin.create_task(spec)
            await admin.start("polarity")

    async def finished(self, *, until: Callable[[TaskInfo], bool] = lambda task: task.state is TaskState.FINISHED) -> TaskInfo:
        async with self.admin() as admin, asyncio.timeout(120):
            while True:
                task = await admin.task("polarity")
                assert task.state is not TaskState.FAILED, task.reason
                if until(task):
                    return task
                await asyncio.sleep(0.1)


@pytest.fixture(params=["sqlite", "postgres and redis"])
def storage(request: pytest.FixtureRequest) -> Mapping[str, str]:
    if request.param == "sqlite":
        return {}
    return {
        "DATABASE_URL": request.getfixturevalue("postgres_url"),
        "REDIS_URL": request.getfixturevalue("redis_url"),
        "MIGRATE_ON_START": "true",
    }


async def test_a_task_goes_from_private_files_to_an_answer(tmp_path: Path, tiny_model: Path, storage: Mapping[str, str]) -> None:
    with Stack(tmp_path / "logs") as stack:
        federation = Federation(stack, tmp_path, tiny_model, storage)
        await federation.enrol()
        await federation.create()
        inference = federation.start_inference()
        agents = [federation.start_agent(name) for name in PEOPLE]
        task = await federation.finished()
        async with federation.admin() as admin:
            rounds = await admin.rounds("polarity")
        assert [(one.kind, one.state) for one in rounds] == [
            ("context", RoundState.CLOSED),
            ("calibration", RoundState.CLOSED),
            ("calibration", RoundState.CLOSED),
            ("evaluation", RoundState.CLOSED),
        ]
        assert [one.version for one in task.evaluations] == [0, 1, 2]
        assert all(one.examples == 8 for one in task.evaluations)
        stack.wait_ready(inference, seconds=60)
        await answers_as_served(inference, task, federation.tokens)
        exports_as_served(federation, task)
        assert [agent.process.wait(30) for agent in agents] == [0, 0]


def exports_as_served(federation: Federation, task: TaskInfo) -> None:
    """`ifed export`, with a reader's token and the model by the task's own name."""
    folder = federation.folder / "exported"
    command = [sys.executable, "-m", "ifed.cli", "export", "--task", "polarity", "--out", str(folder)]
    reader = {"IFED_AGGREGATOR_URL": federation.aggregator.url, "IFED_TOKEN": federation.tokens["reader"]}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | reader)
    assert done.returncode == 0, done.stdout + done.stderr
    card = (folder / "README.md").read_text()
    assert f"| calibration rounds | {task.served} |" in card
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in folder.iterdir()}
    files = federation.folder / "adapters"
    done = subprocess.run(
        [*command[:-1], str(files), "--adapter"], capture_output=True, text=True, check=False, env=os.environ | reader
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {file.name for file in files.iterdir()} == {"polarity.safetensors", f"polarity@{task.served}.safetensors"}
    for file in files.iterdir():
        assert f"sha256 {digest_of(file.read_bytes())}" in " ".join(done.stdout.split())


async def answers_as_served(inference: Service, task: TaskInfo, tokens: Mapping[str, str]) -> None:
    async with InferenceClient(inference.url) as stranger, InferenceClient(inference.url, "made-up") as liar:
        for client in (stranger, liar):
            with pytest.raises(Unauthenticated):
                await client.classify("polarity", "good")
    async with InferenceClient(inference.url, tokens["reader"]) as client, asyncio.timeout(30):
        while True:
            try:
                answer = await client.classify("polarity", ["good", "bad"])
            except NothingYet:
                continue
            if answer.adapter_version == task.served:
                break
            await asyncio.sleep(0.1)
        assert len(answer.data) == 2
        assert all(one.label in LABELS and sum(one.probs) == pytest.approx(1, abs=1e-4) for one in answer.data)
        assert [one.id for one in (await client.models()).data] == ["polarity"]
        first, bare = [
            np.array([one.probs for one in (await client.classify(name, ["good", "bad"])).data])
            for name in ("polarity@0", "polarity@bare")
        ]
        shift = np.diff(np.log(first) - np.log(bare))
        assert shift[0] == pytest.approx(shift[1], abs=1e-3), "version 0 is the bare model less the bias of its labels"


async def test_agents_send_gradients_and_label_probabilities_where_the_policy_asks_for_them(
    tmp_path: Path, tiny_model: Path
) -> None:
    with Stack(tmp_path / "logs") as stack:
        federation = Federation(stack, tmp_path, tiny_model, {})
        await federation.enrol()
        await federation.create(mode="gradient", server_optimizer="fedadam")
        agents = [federation.start_agent(name) for name in PEOPLE]
        await federation.finished()
        async with federation.admin() as admin:
            first, last = [await admin.coefficients("polarity", version=version) for version in (0, 2)]
            assert all([(await admin.replay("polarity", number)).proven for number in (1, 2, 3, 4)])
            fetched = await admin.adapter("polarity")
        assert first != last
        assert fetched is not None
        assert fetched[1].meta.label_bias is not None
        assert len(fetched[1].meta.label_bias) == len(LABELS)
        assert [agent.process.wait(30) for agent in agents] == [0, 0]


async def test_killed_agents_and_a_killed_aggregator_go_on_where_they_were(tmp_path: Path, tiny_model: Path) -> None:
    with Stack(tmp_path / "logs") as stack:
        federation = Federation(stack, tmp_path, tiny_model, {})
        await federation.enrol()
        await federation.create(rounds=3, update_dtype="int8")
        north = federation.start_agent("north")
        await federation.finished(until=lambda task: len(task.members) == 1)
        north.process.send_signal(signal.SIGKILL)
        north.process.wait()
        stack.forget(north)
        federation.start_agent("south")
        await federation.finished(until=lambda task: len(task.members) == 2)
        federation.aggregator.process.send_signal(signal.SIGKILL)
        federation.aggregator.process.wait()
        stack.forget(federation.aggregator)
        federation.aggregator = federation.start_aggregator(port=federation.aggregator.url.rsplit(":", 1)[1])
        federation.start_agent("north")
        task = await federation.finished()
        async with federation.admin() as admin:
            rounds = await admin.rounds("polarity")
        assert [one.state for one in rounds] == [RoundState.CLOSED] * 5
        for one in rounds:
            assert sorted(client.client for client in one.clients if client.contributed_at) == ["north", "south"]
        async with federation.admin() as admin:
            assert all([(await admin.replay("polarity", one.number)).proven for one in rounds])
        owed = sorted(path.parent.name for path in (tmp_path / "state").rglob("lost*"))
        assert owed == ["polarity--north", "polarity--south"]
        assert task.state is TaskState.FINISHED
