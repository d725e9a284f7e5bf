"""Requests that nobody means well with: refused by name, quickly and briefly, before they cost anything."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import numpy as np
from safetensors.numpy import save

from testing.factories import ADMIN_TOKEN, join_request, spec
from tests.integration.aggregator.deployment import TASK, Deployment, deployed, settings
from tests.integration.aggregator.test_roles import ALLOWED, NO_TOKEN, WRONGLY

DEEP = b"[" * 100_000 + b"]" * 100_000
SURROGATE = b'"\\ud800"'
JSON: list[bytes] = [
    b'{"name": %s}' % SURROGATE,
    b"{%s: 1}" % SURROGATE,
    b'{"label_counts": {%s: 1}, "code": %s, "labels": [%s, "a"]}' % (SURROGATE, SURROGATE, SURROGATE),
    DEEP,
    b'{"name": ' + DEEP + b"}",
    b'{"name": ' + b"9" * 5000 + b"}",
    b'{"seconds": NaN, "version": 1e999, "limit": -0}',
    b"\xff\xfe",
    b"\x00",
    b"null",
    b"{",
    b"",
    json.dumps({f"key-{number}": 0 for number in range(3000)}).encode(),
    json.dumps({"k" * 100_000: 0}).encode(),
]


def safetensors(metadata: str, **tensors: np.ndarray) -> bytes:
    return save(tensors or {"context": np.zeros((2, 2, 8), np.float16)}, {"ifed": metadata})


def many_tensors() -> bytes:
    header = json.dumps({f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(100_000)}).encode()
    return len(header).to_bytes(8, "little") + header


TENSOR_BODIES = {
    "a huge header": many_tensors(),
    "deep metadata": safetensors("[" * 10_000),
    "metadata that is no object": safetensors("[]"),
    "half a character": safetensors('{"fingerprint": "\\ud800"}'),
    "unknown keys": safetensors(json.dumps({f"key-{n}": 0 for n in range(4000)})),
    "numbers out of range": safetensors('{"fingerprint": "' + "a" * 64 + '", "examples": 1e400, "loss": -1e400}'),
    "no JSON": safetensors("\x00"),
    "a length beyond the file": b"\xff" * 8 + b"{}",
    "nothing": b"",
}


HEADERS = [
    ("Authorization", "Bearer é".encode("latin-1")),
    ("Authorization", b"Bearer \xff\xfe"),
    ("Authorization", b"Bearer " + b"x" * 60_000),
    ("Authorization", b"\xff"),
    ("X-Request-ID", b"\xff"),
    ("If-None-Match", b"\xff, W/"),
    ("Last-Event-ID", "²".encode("latin-1")),
]


async def test_no_json_of_any_role_gives_500_or_a_long_answer(embedded: Deployment) -> None:
    await embedded.started()
    client = (await embedded.admin.enrol("a")).token
    wrong = []
    for route in [*ALLOWED, *NO_TOKEN]:
        method, path = route.split()
        if method in ("GET", "DELETE"):
            continue
        for body in JSON:
            token = ADMIN_TOKEN if "admin" in ALLOWED.get(route, ()) else client
            url = path.format(task=TASK, number=1, version=1, client="nobody", webhook="none") + WRONGLY.get(route, "")
            answer = await embedded.raw(method, url, token=token, content=body, headers={"Content-Type": "application/json"})
            if answer.status_code >= 500 or len(answer.content) > 20_000:
                wrong.append(f"{route} {body[:40]!r}: {answer.status_code} {len(answer.content)} {answer.text[:80]}")
    assert wrong == []


async def test_no_tensor_body_gives_500_or_a_long_answer(embedded: Deployment) -> None:
    await embedded.started()
    token = (await embedded.admin.enrol("a")).token
    began = time.monotonic()
    for name, body in TENSOR_BODIES.items():
        for method, path in (("PUT", "rounds/1/context"), ("PUT", "rounds/1/update"), ("POST", "context")):
            answer = await embedded.raw(method, f"/v1/tasks/{TASK}/{path}", token=token, content=body)
            assert answer.status_code == 422, f"{name}: {answer.text[:200]}"
            assert len(answer.content) < 5000, name
    assert time.monotonic() - began < 10


async def test_no_header_gives_500(embedded: Deployment) -> None:
    paths = (f"/v1/tasks/{TASK}/adapter", "/v1/token", "/v1/tasks/%ED%A0%80", "/v1/events?after=-1", "/v1/tasks?limit=%C2%B2")
    for name, value in HEADERS:
        for path in paths:
            answer = await embedded.raw("GET", path, headers={name: value})
            assert answer.status_code < 500, f"{name}: {value[:20]!r}: {answer.text}"


async def test_a_body_of_somebody_without_a_token_is_not_read(embedded: Deployment) -> None:
    read = 0

    async def body() -> Any:
        nonlocal read
        for _ in range(100):
            read += 1
            yield b" " * 1000

    for route in ALLOWED:
        method, path = route.split()
        url = path.format(task=TASK, number=1, version=1, client="nobody", webhook="none")
        for token in (None, "ifed_unknown"):
            answer = await embedded.raw(method, url, token=token, content=body(), headers={"Content-Type": "application/json"})
            assert (answer.status_code, read) == (401, 0), route


async def test_json_is_at_most_256_kib(embedded: Deployment) -> None:
    for path, token in (("/v1/tasks", ADMIN_TOKEN), ("/v1/enrol", None)):
        answer = await embedded.raw("POST", path, token=token, json={"code": "x" * 300_000})
        assert (answer.status_code, answer.json()["error"]) == (413, "TooLarge")
    await embedded.admin.create_task(spec(TASK))
    client = await embedded.client("a")
    await client.join(TASK, join_request(num_layers=400))


async def test_a_body_that_does_not_arrive_in_time_is_refused(sqlite_database: str) -> None:
    async def slow() -> Any:
        yield b"{"
        await asyncio.sleep(5)
        yield b"}"

    async with deployed(settings(sqlite_database, body_seconds=0.2)) as aggregator:
        answer = await aggregator.raw("POST", "/v1/tasks", content=slow(), headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["error"]) == (408, "BodyTimeout")
        await aggregator.started()
        assert (await (await aggregator.client("a")).assignment(TASK, wait=0.5)).kind == "join", "an answer may take longer"


async def test_at_most_ten_problems_are_in_a_refusal(embedded: Deployment) -> None:
    many = {f"key-{number}": 0 for number in range(5000)}
    detail = (await embedded.raw("POST", "/v1/tasks", json=many)).json()["detail"]
    assert detail.count(";") == 10
    assert detail.endswith("and 4994 more")  # 4,990, and the four fields that are missing


async def test_json_that_is_not_declared_as_json_is_refused_with_the_header_to_send(embedded: Deployment) -> None:
    for headers in ({}, {"Content-Type": "application/x-www-form-urlencoded"}):
        answer = await embedded.raw("POST", "/v1/clients", content=b'{"name": "a"}', headers=headers)
        assert (answer.status_code, answer.json()["error"]) == (422, "Malformed")
        assert "Content-Type: application/json" in answer.json()["detail"]
    await embedded.admin.create_task(spec(TASK))
    assert (await embedded.raw("POST", f"/v1/tasks/{TASK}/start")).status_code == 200, "a body that may be absent needs no header"


async def test_head_is_answered_as_get_without_a_body(embedded: Deployment) -> None:
    for path in ("/livez", "/readyz", "/health", "/v1/tasks", "/metrics"):
        get, head = await embedded.raw("GET", path), await embedded.raw("HEAD", path)
        assert (head.status_code, head.content) == (200, b""), path
        assert head.headers["Content-Type"] == get.headers["Content-Type"]
    assert (await embedded.raw("HEAD", "/v1/tasks", token=None)).status_code == 401
    assert (await embedded.raw("GET", "/health", token=None)).json()["ready"] is True
