"""Our clients raise the refusal that the service raised."""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
import ssl
import subprocess
import sys
import traceback
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from ifed.clients import AggregatorClient, InferenceClient
from ifed.errors import Conflict, IFedError, Malformed, Overloaded, RoundClosed, Unavailable, UnknownTask, UnreadableAnswer
from ifed.server.web import mount
from ifed.tensors.values import TensorBody


def app_that_raises(reason: Exception) -> FastAPI:
    app = FastAPI()

    async def ready() -> dict[str, str]:
        return {"database": "ok", "cache": "degraded: it is slow"}

    mount(app, readiness=ready, registry=CollectorRegistry())

    @app.get("/v1/tasks/{task}")
    async def task(task: str) -> None:
        raise reason

    @app.get("/v1/models")
    async def models(count: int) -> None: ...

    return app


def client_of(app: FastAPI) -> AggregatorClient:
    return AggregatorClient("http://service", "token", transport=httpx.ASGITransport(app, raise_app_exceptions=False))


async def test_a_refusal_is_raised_as_the_class_that_the_service_raised() -> None:
    async with client_of(app_that_raises(RoundClosed("round 3 closed"))) as client:
        with pytest.raises(RoundClosed, match="round 3 closed"):
            await client.task("a")


async def test_retry_after_is_part_of_the_refusal() -> None:
    async with client_of(app_that_raises(Overloaded("busy", retry_after=7))) as client:
        with pytest.raises(Overloaded) as refusal:
            await client.task("a")
    assert refusal.value.retry_after == 7


async def test_an_unexpected_error_is_not_described_to_the_caller() -> None:
    async with client_of(app_that_raises(ValueError("secret path"))) as client:
        with pytest.raises(IFedError) as refusal:
            await client.task("a")
    assert refusal.value.status == 500
    assert "secret" not in refusal.value.detail


async def test_a_malformed_request_is_refused_with_the_field() -> None:
    transport = httpx.ASGITransport(app_that_raises(ValueError()))
    async with InferenceClient("http://service", transport=transport) as client:
        with pytest.raises(Malformed, match=r"query\.count: Field required"):
            await client.models()


async def test_an_unknown_refusal_keeps_its_name_and_status() -> None:
    refusal = IFedError.named("BrandNew", "words", status=418)
    assert (refusal.status, refusal.detail) == (418, "BrandNew: words")
    assert IFedError.status == 500


async def test_an_answer_without_an_error_body_is_refused_with_its_status() -> None:
    transport = httpx.MockTransport(lambda _request: httpx.Response(418, text="<html>teapot</html>"))
    async with InferenceClient("http://service", transport=transport) as client:
        with pytest.raises(IFedError, match=r"HTTP 418.*<html>teapot"):
            await client.models()


@pytest.mark.parametrize(
    ("status", "refusal"), [(429, Overloaded), (500, Unavailable), (502, Unavailable), (503, Unavailable), (504, Unavailable)]
)
async def test_an_error_of_a_proxy_is_retryable(status: int, refusal: type[IFedError]) -> None:
    transport = httpx.MockTransport(lambda _request: httpx.Response(status, text="<html>bad gateway</html>"))
    async with AggregatorClient("http://service", transport=transport) as client:
        with pytest.raises(refusal):
            await client.task("a")


async def test_an_answer_of_another_server_is_unavailable() -> None:
    transport = httpx.MockTransport(lambda _request: httpx.Response(200, text="<html>welcome</html>"))
    async with AggregatorClient("http://service", transport=transport) as client:
        with pytest.raises(Unavailable, match="is it the service it should be"):
            await client.task("a")


async def test_a_broken_connection_is_unavailable() -> None:
    async with AggregatorClient("http://127.0.0.1:1") as client:
        with pytest.raises(Unavailable, match="cannot be reached"):
            await client.task("a")


async def test_a_degraded_service_is_ready_and_says_what_is_wrong() -> None:
    async with httpx.AsyncClient(base_url="http://service", transport=httpx.ASGITransport(app_that_raises(ValueError()))) as http:
        answer = await http.get("/readyz")
    assert answer.status_code == 200
    assert answer.json() == {"ready": True, "checks": {"database": "ok", "cache": "degraded: it is slow"}}


async def test_every_answer_carries_a_request_id() -> None:
    async with httpx.AsyncClient(base_url="http://service", transport=httpx.ASGITransport(app_that_raises(ValueError()))) as http:
        answer = await http.get("/livez")
    assert answer.headers["X-Request-ID"]


async def test_tensors_that_were_changed_in_transit_are_refused() -> None:
    body = TensorBody({"context": np.zeros((1, 2, 4), np.float16)}, {}).to_bytes()
    headers = {"Content-Digest": "sha-256=:AAAA:"}
    transport = httpx.MockTransport(lambda _request: httpx.Response(200, content=body, headers=headers))
    async with AggregatorClient("http://service", transport=transport) as client:
        with pytest.raises(UnreadableAnswer, match="sha-256"):
            await client.context("a")


@pytest.mark.slow
def test_a_caller_that_imports_only_the_clients_gets_the_inference_services_error_classes() -> None:
    """Run in a separate process, because the test process has imported all classes."""
    program = (
        "import sys; import ifed.clients; from ifed.errors import IFedError, Overloaded;"
        "refusal = IFedError.named('QueueFull', 'full', status=429, retry_after=1);"
        "assert isinstance(refusal, Overloaded), type(refusal); assert not [name for name in sys.modules if name.startswith('services')]"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("token", ["ifed_…", "ifed_a\nb"])
def test_a_token_that_is_not_a_valid_header_is_refused(token: str) -> None:
    with pytest.raises(Malformed, match="copy the whole of it"):
        AggregatorClient("http://127.0.0.1:1", token)


BODY = TensorBody({"context": np.zeros((1, 2, 4), np.float16)}, {}).to_bytes()
HUGE_HEADER = (b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' + b" " * 2**20).ljust(2**20 + 64)
NESTED = '{"__metadata__":{"ifed":"' + "[" * 100_000 + '"}}'


def answering(
    status: int = 200, content: bytes | AsyncIterator[bytes] = b"{}", headers: Mapping[str, str] | None = None
) -> httpx.MockTransport:
    """Return the transport of a service that gives one answer to everything."""
    return httpx.MockTransport(lambda _request: httpx.Response(status, headers=headers, content=content))


def framed(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize(
    "answer",
    [
        b"[" * 100_000,
        b'{"task": ' + b"9" * 5000 + b"}",
        b"\xff\xfe",
        b"",
        b'{"task": "a"}',
    ],
    ids=["deep", "5,000 digits", "no text", "empty", "fields missing"],
)
async def test_json_that_cannot_be_read_is_one_named_refusal_that_is_retried(answer: bytes) -> None:
    async with AggregatorClient("http://service", transport=answering(content=answer)) as client:
        for call in (client.assignment("a"), client.submit_update("a", 1, BODY), client.task("a")):
            with pytest.raises(UnreadableAnswer, match="is it the service it should be"):
                await call


@pytest.mark.parametrize(
    "answer",
    [
        b'{"error": ["Conflict"], "detail": "x"}',
        b'{"error": "Conflict", "detail": {"a": 1}}',
        b'["error"]',
        b"[" * 100_000,
        b"9" * 5000,
    ],
    ids=["error is a list", "detail is an object", "list", "deep", "digits"],
)
async def test_an_error_body_of_another_form_is_refused_by_its_status(answer: bytes) -> None:
    for status, refusal in ((503, Unavailable), (418, IFedError)):
        async with AggregatorClient("http://service", transport=answering(status, answer)) as client:
            with pytest.raises(refusal, match=f"HTTP {status}"):
                await client.task("a")


@pytest.mark.parametrize("after", ["9" * 5000, "²", "-1", "1.5"])
async def test_a_retry_after_of_any_form_is_an_hour_at_the_most(after: str) -> None:
    transport = answering(503, headers=[(b"Retry-After", after.encode())])  # type: ignore[arg-type]
    async with AggregatorClient("http://service", transport=transport) as client:
        with pytest.raises(Unavailable) as refusal:
            await client.task("a")
    assert refusal.value.retry_after in (3600, Unavailable.retry_after)


async def test_a_detail_is_cut_and_holds_no_control_characters() -> None:
    body = json.dumps({"error": "Conflict", "detail": "\x1b[2Jgone\r\n" + "x" * 100_000}).encode()
    async with AggregatorClient("http://service", transport=answering(409, body)) as client:
        with pytest.raises(Conflict) as refusal:
            await client.task("a")
    assert refusal.value.detail.startswith(" [2Jgone  xxx")
    assert len(refusal.value.detail) <= 2000


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"no tensors",
        framed(HUGE_HEADER),
        framed(NESTED.encode()),
        framed(b'{"context":{"dtype":"F16","shape":[1,2,4],"data_offsets":[0,9]}}'),
    ],
    ids=["empty", "text", "huge header", "nested metadata", "cut off"],
)
async def test_tensors_that_cannot_be_read_are_one_named_refusal_that_is_retried(answer: bytes) -> None:
    async with AggregatorClient("http://service", transport=answering(content=answer, headers={"ETag": '"a"'})) as client:
        for call in (client.context("a"), client.coefficients("a"), client.adapter("a")):
            with pytest.raises(UnreadableAnswer, match="tensors that cannot be read"):
                await call


async def test_an_adapter_without_an_etag_is_refused() -> None:
    async with AggregatorClient("http://service", transport=answering(content=BODY)) as client:
        with pytest.raises(UnreadableAnswer, match="ETag"):
            await client.adapter("a")


async def test_an_answer_larger_than_the_limit_is_refused_while_it_arrives() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1000
            yield b" " * 1000

    for status in (200, 503):
        transport = answering(status, endless())
        async with AggregatorClient("http://service", transport=transport, max_bytes=10_000) as client:
            with pytest.raises(UnreadableAnswer, match="more than the 10000 bytes"):
                await client.task("a")
    assert sent < 30_000


async def test_no_compressed_answer_is_asked_for_or_unpacked() -> None:
    asked = []

    def bomb(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers["Accept-Encoding"])
        return httpx.Response(200, headers={"Content-Encoding": "gzip"}, stream=httpx.ByteStream(gzip.compress(b" " * 10_000_000)))

    async with AggregatorClient("http://service", transport=httpx.MockTransport(bomb)) as client:
        with pytest.raises(UnreadableAnswer, match="'gzip'; turn compression off"):
            await client.task("a")
    assert asked == ["identity"]


async def test_a_redirect_is_not_followed_and_is_named() -> None:
    transport = answering(307, headers={"Location": "http://elsewhere/"})
    async with AggregatorClient("http://service", "token", transport=transport) as client:
        with pytest.raises(UnreadableAnswer, match="redirects"):
            await client.task("a")


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for loopback and its key, as files."""
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("needs the openssl command to make a certificate for the test")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1", "-subj", "/CN=a"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([openssl, "req", "-x509", *curve, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


@pytest.fixture
async def https(certificate: tuple[Path, Path]) -> AsyncIterator[tuple[str, Path]]:
    """An HTTPS server on loopback that knows no task, and the file of its certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    body = b'{"error": "UnknownTask", "detail": "none"}'

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}", certificate[0]


async def test_a_private_authority_is_trusted_on_loopback_by_setting_and_by_environment(
    https: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, certificate = https
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")  # which is not used on loopback
    async with AggregatorClient(url) as client:
        with pytest.raises(Unavailable, match=r"CERTIFICATE_VERIFY_FAILED.*SSL_CERT_FILE, or CA_FILE"):
            await client.task("a")
    async with AggregatorClient(url, ca_file=certificate) as client:
        with pytest.raises(UnknownTask):
            await client.task("a")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with AggregatorClient(url) as client:
        with pytest.raises(UnknownTask):
            await client.task("a")


def test_a_ca_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    for file in ("ca.pem", "none.pem"):
        with pytest.raises(Malformed, match=f"{file} cannot be read as certificates"):
            AggregatorClient("https://service", ca_file=tmp_path / file)


@pytest.mark.parametrize("proxy", ["foo://user:secret@host", "socks5://user:secret@host:1", "http://host:none"])
def test_a_proxy_that_cannot_be_used_is_a_sentence_without_its_password(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Malformed, match="PROXY_URL, or HTTP_PROXY"):
        AggregatorClient("https://service", proxy=proxy)
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(Malformed, match="a proxy cannot be used") as refusal:
        AggregatorClient("https://service")
    assert "secret" not in "".join(traceback.format_exception(refusal.value))


async def test_a_proxy_of_the_setting_is_used(tmp_path: Path) -> None:
    async with AggregatorClient("http://127.0.0.1:1", proxy="http://127.0.0.2:2") as client:
        (mount,) = client._http._mounts.values()
    assert mount is not None
