"""Inference serves what the aggregator promotes within a second, and goes on serving without the aggregator."""

from __future__ import annotations

import asyncio
from pathlib import Path
from time import monotonic

import httpx

from ifed.cli.demo.stack import Stack
from ifed.clients import InferenceClient
from tests.e2e.federation import ORGANISATIONS, TASK, Federation


async def adapter_check(url: str) -> tuple[int, str]:
    """The status of /readyz and its check of the adapters."""
    async with httpx.AsyncClient() as http:
        response = await http.get(f"{url}/readyz")
    return response.status_code, response.json()["checks"]["adapters"]


async def metric(url: str, series: str) -> float:
    async with httpx.AsyncClient() as http:
        lines = (await http.get(f"{url}/metrics")).text.splitlines()
    (sample,) = (line for line in lines if line.startswith(f"{series} "))
    return float(sample.rsplit(" ", 1)[1])


async def seconds_until_served(client: InferenceClient, version: int, *, limit: float) -> float:
    began = monotonic()
    async with asyncio.timeout(limit):
        while (await client.classify(TASK, "good")).adapter_version != version:
            await asyncio.sleep(0.02)
    return monotonic() - began


async def test_inference_follows_its_aggregator_and_outlives_it(tmp_path: Path, tiny_model: Path) -> None:
    with Stack(tmp_path / "logs") as stack:
        federation = Federation(stack, tmp_path, tiny_model)
        await federation.enrol()
        await federation.start_task(rounds=3, serve="latest")
        for name in ORGANISATIONS:
            federation.start_agent(name)
        inference = federation.start_inference()
        task = await federation.wait_until_finished()
        assert task.served == 3
        stack.wait_ready(inference, seconds=60)
        async with InferenceClient(inference.url, federation.tokens["reader"]) as client:
            await seconds_until_served(client, 3, limit=30)
            delays = []
            async with federation.admin() as admin:
                for version in (2, 1, 0):
                    await admin.rollback(TASK, version)
                    delays.append(await seconds_until_served(client, version, limit=10))
            assert sorted(delays)[1] < 1, "a rollback is served within a second; a busy machine may miss one of three"
            assert (await client.classify(f"{TASK}@3", "good")).adapter_version == 3
            assert await adapter_check(inference.url) == (200, "ok")

            federation.kill(federation.aggregator)
            async with asyncio.timeout(20):
                while (await adapter_check(inference.url))[1] == "ok":
                    await asyncio.sleep(0.1)
            status, check = await adapter_check(inference.url)
            assert (status, check.startswith(f"degraded: {TASK}: ")) == (200, True)
            assert await metric(inference.url, f'ifed_inference_adapter_stale{{task="{TASK}"}}') == 1
            assert await metric(inference.url, "ifed_inference_stale_tasks") == 1
            assert (await client.classify(TASK, ["good", "bad"])).adapter_version == 0
            assert (await client.model(TASK)).stale

            federation.restart_aggregator()
            async with asyncio.timeout(20):
                while (await adapter_check(inference.url))[1] != "ok":
                    await asyncio.sleep(0.1)
            assert await metric(inference.url, "ifed_inference_stale_tasks") == 0
