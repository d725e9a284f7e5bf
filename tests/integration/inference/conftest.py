"""One inference service for all tests: a process with a random three-layer model, a folder of adapters, a key file and tracing."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from ifed.cli.demo.stack import ServiceProcess, Stack
from ifed.messages.bodies import AdapterBody
from ifed.messages.rounds import AdapterMeta
from ifed.messages.tasks import Layout
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.loading import load
from testing.random_models import HIDDEN, LAYERS, build_model, build_tokenizer, random_coefficients, random_context

KEY = "a-key-for-tests-only"
LABELS = ["negative", "positive", "mixed"]


def adapter_body(
    lm: LanguageModel,
    task: str,
    version: int,
    *,
    seed: int,
    labels: list[str] | None = None,
    abstain_below: float | None = None,
) -> AdapterBody:
    """Return an adapter with random tensors for a random model."""
    layers = list(range(1, LAYERS))
    meta = AdapterMeta(
        task=task,
        version=version,
        labels=labels or LABELS,
        template="Review: {text}\nSentiment:",
        identity=lm.identity,
        layout=Layout(layers=layers, hidden_size=HIDDEN, groups=4),
        abstain_below=abstain_below,
        created_at=datetime.now(UTC),
    )
    return AdapterBody(random_context(len(layers), seed=seed), random_coefficients(len(layers), 4, seed=seed), meta)


def put(folder: Path, body: AdapterBody) -> None:
    """Write an adapter to a folder as `ifed export --adapter` does."""
    for name in (f"{body.meta.task}@{body.meta.version}", body.meta.task):
        partial = folder / f".{name}.new"
        partial.write_bytes(body.to_bytes())
        partial.replace(folder / f"{name}.safetensors")


class TraceCollector(ThreadingHTTPServer):
    """An OpenTelemetry collector that keeps the bytes of every span it receives over OTLP with HTTP."""

    daemon_threads = True

    def __init__(self) -> None:
        self.received = b""
        super().__init__(("127.0.0.1", 0), _TraceHandler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _TraceHandler(BaseHTTPRequestHandler):
    server: TraceCollector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received += gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name in the base class
        """Log nothing."""


class Running(NamedTuple):
    """The service under test, its folder of adapters, its model, and the collector of its traces."""

    url: str
    folder: Path
    lm: LanguageModel
    service: ServiceProcess
    traces: TraceCollector


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random three-layer model."""
    folder = tmp_path_factory.mktemp("small-model")
    build_model("llama").save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def traces() -> Iterator[TraceCollector]:
    """A collector of traces, which the service exports to."""
    with TraceCollector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        yield collector
        collector.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory, small_model: Path, traces: TraceCollector) -> Iterator[Running]:
    """The service, ready, with the tasks `sentiment` (versions 1 and 2) and `topic`, and four demonstrations."""
    folder = tmp_path_factory.mktemp("inference")
    adapters, demonstrations = folder / "adapters", folder / "demonstrations"
    adapters.mkdir()
    demonstrations.mkdir()
    lm = load(str(small_model), cache=folder, device="cpu", dtype="float32")
    for version, seed in ((1, 11), (2, 12)):
        put(adapters, adapter_body(lm, "sentiment", version, seed=seed))
    put(adapters, adapter_body(lm, "topic", 1, seed=21, labels=["sport", "science"]))
    lines = (json.dumps({"text": f"good {n}", "label": "positive"}) for n in range(4))
    (demonstrations / "sentiment.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "keys").write_text(f"# the tests\ntests {KEY}\n")
    settings = {
        "ADAPTER_FOLDER": str(adapters),
        "KEY_FILE": str(folder / "keys"),
        "DEMONSTRATIONS_FOLDER": str(demonstrations),
        "MODEL": str(small_model),
        "DTYPE": "float32",
        "THREADS": "1",
        "TASKS": "sentiment",
        "MAX_ITEMS": "64",
        "MAX_TEXT_TOKENS": "64",
        "MAX_REQUEST_TOKENS": "2000",
        "MAX_BODY_BYTES": "100000",
        "FAILED_ATTEMPTS_PER_MINUTE": "100000",  # schemathesis sends many wrong tokens
        "OTEL_EXPORTER_OTLP_ENDPOINT": traces.url,
        "OTEL_SERVICE_NAME": "traced-inference",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    with Stack(folder / "logs") as stack:
        service = stack.start("inference", "services.inference.app", settings)
        stack.wait_ready(service, seconds=120)
        yield Running(service.url, adapters, lm, service, traces)
