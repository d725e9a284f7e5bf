"""Our clients raise the refusal that the service raised."""

from __future__ import annotations

import subprocess
import sys

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from ifed.clients import AggregatorClient, InferenceClient
from ifed.errors import IFedError, Malformed, Overloaded, RoundClosed, Unavailable
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
        with pytest.raises(Malformed):
            await client.context("a")


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
