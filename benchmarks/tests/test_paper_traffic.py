"""The bytes that the paper's experiment counts for a client, held against what a real agent sends and receives."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from benchmarks.paper import traffic
from benchmarks.paper.byte_counter import serve_counted
from benchmarks.paper.methods import SETTINGS, Plan
from benchmarks.tests.test_federated import DATASET
from ifed.clients import AggregatorClient
from ifed.messages.enums import TaskState
from ifed.messages.tasks import TaskSpec
from ifed.modeling.loading import load
from services.aggregator.app import serve
from services.aggregator.settings import Settings as AggregatorSettings
from services.client_agent.app import take_part
from services.client_agent.settings import Settings as AgentSettings
from services.client_agent.status import Status
from testing.random_models import build_model, build_tokenizer, examples

PLAN = Plan(clients=1, rounds=3, local_steps=1, batch_size=2)


@pytest.mark.parametrize("name", ["ours", "compact-int8"])
def test_an_agent_sends_and_receives_what_was_counted_for_it(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model"
    build_model("qwen2").save_pretrained(model)
    build_tokenizer().save_pretrained(model)
    lm = load(str(model), cache=tmp_path, device="cpu", threads=1)
    setting = SETTINGS[name]
    capsys.readouterr()
    counted = traffic.count_task_bytes(lm.identity, DATASET, setting, PLAN)
    assert capsys.readouterr().out == "", "the aggregator's log"
    spec = traffic.task_spec(lm.name, DATASET, setting, setting.policy_for(PLAN))
    rows = [{"text": example.text or "nothing", "label": DATASET.labels[example.label]} for example in examples(40)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    sent = asyncio.run(_take_part_in_task(spec, model, data, tmp_path))
    for way in ("up", "down"):
        expected = sum(counted[part][way] for part in ("joining", "context", "evaluation")) + 3 * counted["round"][way]
        assert sent[way] == pytest.approx(expected, rel=0.02), way


async def _take_part_in_task(spec: TaskSpec, model: Path, data: Path, folder: Path) -> dict[str, int]:
    aggregator_settings = AggregatorSettings.model_validate(
        {
            "database_url": f"sqlite+aiosqlite:///{folder / 'aggregator.db'}",
            "admin_token": traffic.ADMIN_TOKEN,
            "tick_seconds": 0.05,
            "migrate_on_start": True,
        }
    )
    async with (
        serve_counted(serve(aggregator_settings)) as counter,
        AggregatorClient(counter.direct_url, traffic.ADMIN_TOKEN) as admin,
    ):
        await admin.create_task(spec)
        await admin.start(spec.name)
        token = (await admin.enrol("client-00")).token
        agent = AgentSettings.model_validate(
            {
                "aggregator_url": counter.url,
                "client_token": token,
                "task": spec.name,
                "data_file": data,
                "model": str(model),
                "min_examples": 1,
                "device": "cpu",
                "threads": 1,
                "state_dir": folder / "state",
            }
        )
        await take_part(agent, Status())
        assert (await admin.task(spec.name)).state is TaskState.FINISHED
        return counter.reset()
