"""Traces go where the OpenTelemetry variables say, and contain no text."""

from __future__ import annotations

import asyncio

from ifed.clients import InferenceClient
from tests.integration.inference.conftest import KEY, Running


async def test_every_request_is_a_trace_without_its_text(running: Running) -> None:
    running.traces.received = b""
    async with InferenceClient(running.url, KEY) as client, asyncio.timeout(60):
        await client.classify("sentiment", "a secret word: xylophone")
        while b"/v1/classify" not in running.traces.received:
            await asyncio.sleep(0.05)
    for words in (b"traced-inference", b"prepare", b"model", b"sentiment"):
        assert words in running.traces.received
    assert b"xylophone" not in running.traces.received
