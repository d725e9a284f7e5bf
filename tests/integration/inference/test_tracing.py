"""Traces go where the usual OpenTelemetry variables say, and hold no text."""

from __future__ import annotations

import asyncio
import gzip
from pathlib import Path

from ifed.cli.demo.stack import Stack
from ifed.clients import InferenceClient
from tests.integration.inference.conftest import Running


class Collector:
    """Takes what an OTLP exporter sends."""

    def __init__(self) -> None:
        self.received = b""
        self.came = asyncio.Event()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        body = await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
        self.received += gzip.decompress(body) if b"content-encoding: gzip" in head else body
        self.came.set()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()


async def test_every_request_is_a_trace_without_its_text(running: Running, tmp_path: Path) -> None:
    collector = Collector()
    server = await asyncio.start_server(collector.answer, "127.0.0.1", 0)
    settings = {
        "ADAPTER_FOLDER": str(running.folder),
        "OPEN_ACCESS": "true",
        "MODEL": running.lm.name,
        "THREADS": "1",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}",
        "OTEL_SERVICE_NAME": "traced-inference",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    with Stack(tmp_path) as stack:
        service = stack.start("traced", "services.inference.app", settings)
        await asyncio.to_thread(stack.wait_ready, service, seconds=120)
        collector.received = b""
        async with InferenceClient(service.url) as client, asyncio.timeout(60):
            await client.classify("sentiment", "a secret word: xylophone")
            while b"/v1/classify" not in collector.received:
                collector.came.clear()
                await collector.came.wait()
    server.close()
    for words in (b"traced-inference", b"prepare", b"model", b"sentiment"):
        assert words in collector.received
    assert b"xylophone" not in collector.received
