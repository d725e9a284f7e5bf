"""The inference service beside a real aggregator: a promotion is served within a second, a lost aggregator is outlived and told."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from time import monotonic

import httpx

from ifed.clients import InferenceClient
from tests.e2e.test_three_apps import PEOPLE, Federation, Stack

TASK = "polarity"


async def checks(url: str) -> tuple[int, str]:
    async with httpx.AsyncClient() as http:
        answer = await http.get(f"{url}/readyz")
    return answer.status_code, answer.json()["checks"]["adapters"]


async def metric(url: str, line: str) -> float:
    async with httpx.AsyncClient() as http:
        shown = (await http.get(f"{url}/metrics")).text
    (found,) = (row for row in shown.splitlines() if row.startswith(f"{line} "))
    return float(found.rsplit(" ", 1)[1])


async def serves(client: InferenceClient, version: int, *, seconds: float) -> float:
    """Seconds until `version` answers."""
    began = monotonic()
    async with asyncio.timeout(seconds):
        while (await client.classify(TASK, "good")).adapter_version != version:
            await asyncio.sleep(0.02)
    return monotonic() - began


async def test_inference_follows_its_aggregator_and_outlives_it(tmp_path: Path, tiny_model: Path) -> None:
    with Stack(tmp_path / "logs") as stack:
        federation = Federation(stack, tmp_path, tiny_model, {})
        await federation.enrol()
        await federation.create(rounds=3, serve="latest")
        for name in PEOPLE:
            federation.start_agent(name)
        inference = federation.start_inference()
        task = await federation.finished()
        stack.wait_ready(inference, seconds=60)
        async with InferenceClient(inference.url, federation.tokens["reader"]) as client:
            await serves(client, 3, seconds=30)
            async with federation.admin() as admin:
                took = []
                for version in (2, 1, 0):
                    await admin.rollback(TASK, version)
                    took.append(await serves(client, version, seconds=10))
            assert sorted(took)[1] < 1, (
                "what the aggregator serves now is served here within a second; a busy machine may miss it once"
            )
            assert (await client.classify(f"{TASK}@3", "good")).adapter_version == 3
            assert await checks(inference.url) == (200, "ok")

            federation.aggregator.process.send_signal(signal.SIGKILL)
            federation.aggregator.process.wait()
            stack.forget(federation.aggregator)
            async with asyncio.timeout(20):
                while (await checks(inference.url))[1] == "ok":
                    await asyncio.sleep(0.1)
            status, words = await checks(inference.url)
            assert (status, words.startswith(f"degraded: {TASK}: ")) == (200, True)
            assert await metric(inference.url, f'ifed_inference_adapter_stale{{task="{TASK}"}}') == 1
            assert await metric(inference.url, "ifed_inference_stale_tasks") == 1
            assert (await client.classify(TASK, ["good", "bad"])).adapter_version == 0
            assert (await client.model(TASK)).stale

            port = federation.aggregator.url.rsplit(":", 1)[1]
            federation.aggregator = federation.start_aggregator(port=port)
            async with asyncio.timeout(20):
                while (await checks(inference.url))[1] != "ok":
                    await asyncio.sleep(0.1)
            assert await metric(inference.url, "ifed_inference_stale_tasks") == 0
        assert task.served == 3
