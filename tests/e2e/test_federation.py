"""A task from private files to an answer, over HTTP alone."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from ifed.cli.demo.stack import ServiceProcess, Stack
from ifed.clients import InferenceClient
from ifed.errors import NothingYet, Unauthenticated
from ifed.messages.enums import RoundState
from ifed.messages.rounds import TaskInfo
from ifed.tensors.values import digest_of
from tests.e2e.federation import LABELS, ORGANISATIONS, TASK, Federation


async def test_a_task_goes_from_private_files_to_an_answer_and_an_export(tmp_path: Path, tiny_model: Path) -> None:
    with Stack(tmp_path / "logs") as stack:
        federation = Federation(stack, tmp_path, tiny_model)
        await federation.enrol()
        await federation.start_task()
        inference = federation.start_inference()
        agents = [federation.start_agent(name) for name in ORGANISATIONS]
        task = await federation.wait_until_finished()
        async with federation.admin() as admin:
            rounds = await admin.rounds(TASK)
        assert [(round_.kind, round_.state) for round_ in rounds] == [
            ("context", RoundState.CLOSED),
            ("calibration", RoundState.CLOSED),
            ("calibration", RoundState.CLOSED),
            ("evaluation", RoundState.CLOSED),
        ]
        assert [evaluation.version for evaluation in task.evaluations] == [0, 1, 2]
        assert all(evaluation.examples == 8 for evaluation in task.evaluations)
        assert [agent.process.wait(30) for agent in agents] == [0, 0]
        stack.wait_ready(inference, seconds=60)
        await check_answers(inference, task, federation.tokens)
        check_exports(federation, task)


async def check_answers(inference: ServiceProcess, task: TaskInfo, tokens: Mapping[str, str]) -> None:
    """Inference refuses strangers and answers a reader with the adapter that the aggregator serves."""
    async with InferenceClient(inference.url) as anonymous, InferenceClient(inference.url, "made-up") as stranger:
        for client in (anonymous, stranger):
            with pytest.raises(Unauthenticated):
                await client.classify(TASK, "good")
    async with InferenceClient(inference.url, tokens["reader"]) as client, asyncio.timeout(30):
        while True:
            try:
                answer = await client.classify(TASK, ["good", "bad"])
            except NothingYet:
                continue
            if answer.adapter_version == task.served:
                break
            await asyncio.sleep(0.1)
        assert len(answer.data) == 2
        for classification in answer.data:
            assert classification.label in LABELS
            assert sum(classification.probs) == pytest.approx(1, abs=1e-4)
        assert [model.id for model in (await client.models()).data] == [TASK]
        first, bare = [
            np.array([classification.probs for classification in (await client.classify(name, ["good", "bad"])).data])
            for name in (f"{TASK}@0", f"{TASK}@base")
        ]
        shift = np.diff(np.log(first) - np.log(bare))
        assert shift[0] == pytest.approx(shift[1], abs=1e-3), "version 0 is the base model less the bias of its labels"


def check_exports(federation: Federation, task: TaskInfo) -> None:
    """`ifed export` writes a model, and with `--adapter` the adapter, under a reader's token."""
    model, adapters = federation.folder / "exported", federation.folder / "adapters"
    export(federation, "--out", str(model))
    assert f"| calibration rounds | {task.served} |" in (model / "README.md").read_text()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in model.iterdir()}
    output = export(federation, "--out", str(adapters), "--adapter")
    assert {file.name for file in adapters.iterdir()} == {f"{TASK}.safetensors", f"{TASK}@{task.served}.safetensors"}
    for file in adapters.iterdir():
        assert f"sha256 {digest_of(file.read_bytes())}" in output


def export(federation: Federation, *options: str) -> str:
    """Run `ifed export` and return what it prints, with single spaces."""
    completed = subprocess.run(
        [sys.executable, "-m", "ifed.cli", "export", "--task", TASK, *options],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"IFED_AGGREGATOR_URL": federation.aggregator.url, "IFED_TOKEN": federation.tokens["reader"]},
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return " ".join(completed.stdout.split())


async def test_gradients_and_label_probabilities_are_aggregated_on_postgres_and_redis(
    tmp_path: Path, tiny_model: Path, postgres_database: str, redis_url: str
) -> None:
    storage = {"DATABASE_URL": postgres_database, "REDIS_URL": redis_url, "MIGRATE_ON_START": "true"}
    with Stack(tmp_path / "logs") as stack:
        federation = Federation(stack, tmp_path, tiny_model, storage)
        await federation.enrol()
        await federation.start_task(mode="gradient", server_optimizer="fedadam")
        agents = [federation.start_agent(name) for name in ORGANISATIONS]
        await federation.wait_until_finished()
        async with federation.admin() as admin:
            first, last = [await admin.coefficients(TASK, version=version) for version in (0, 2)]
            assert all([(await admin.replay(TASK, number)).proven for number in (1, 2, 3, 4)])
            response = await admin.adapter(TASK)
        assert first != last
        assert response is not None
        _, adapter = response
        assert adapter.meta.label_bias is not None
        assert len(adapter.meta.label_bias) == len(LABELS)
        assert [agent.process.wait(30) for agent in agents] == [0, 0]


async def test_a_killed_agent_and_a_killed_aggregator_go_on_where_they_were(tmp_path: Path, tiny_model: Path) -> None:
    with Stack(tmp_path / "logs") as stack:
        federation = Federation(stack, tmp_path, tiny_model)
        await federation.enrol()
        await federation.start_task(rounds=3, update_dtype="int8")
        north = federation.start_agent("north")
        await federation.wait_until(lambda task: len(task.members) == 1)
        federation.kill(north)
        federation.start_agent("south")
        await federation.wait_until(lambda task: len(task.members) == 2)
        federation.kill(federation.aggregator)
        federation.restart_aggregator()
        federation.start_agent("north")
        await federation.wait_until_finished()
        async with federation.admin() as admin:
            rounds = await admin.rounds(TASK)
            assert all([(await admin.replay(TASK, round_.number)).proven for round_ in rounds])
        assert [round_.state for round_ in rounds] == [RoundState.CLOSED] * 5
        for round_ in rounds:
            assert sorted(client.client for client in round_.clients if client.contributed_at) == ["north", "south"]
        errors = sorted(path.parent.name for path in (tmp_path / "state").rglob("lost*"))
        assert errors == [f"{TASK}--north", f"{TASK}--south"], "each agent keeps the quantisation error of its last update"
