"""The HTTP API without a model: messages that are refused, the shapes of answers, and a service whose engine has stopped."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from pydantic import BaseModel, ValidationError

from ifed.errors import EmptyText, Malformed
from ifed.messages.inference import ClassifyRequest
from ifed.server.authentication import FailedAttempts
from services.inference.api.formats import (
    HubRequest,
    PredictRequest,
    answer_headers,
    answers_headers,
    classify_response,
    hub_response,
    predict_response,
)
from services.inference.api.open_inference_messages import parse_inference
from services.inference.app import create_app
from services.inference.authentication import ApiKeys, OpenAccess
from services.inference.metrics import Metrics
from services.inference.service import Answer, Result
from services.inference.settings import Settings

HALF = "half a character: \ud83d"
TENSOR = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["good"]}
NO, YES, LONG = np.log([[0.9, 0.1], [0.25, 0.75], [0.25, 0.75]]).astype(np.float32)


def answer_of(*results: Result, version: int | None = 3, digest: str = "digest-3") -> Answer:
    return Answer("a", "a", version, digest, ["no", "yes"], results, 25, queue_seconds=0.0015, model_seconds=0.25)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (ClassifyRequest, {"model": "a", "input": HALF}),
        (ClassifyRequest, {"model": "a", "input": ["fine ✓", HALF]}),
        (PredictRequest, {"inputs": HALF}),
        (PredictRequest, {"inputs": [["fine ✓"], [HALF]]}),
        (HubRequest, {"inputs": ["fine ✓", HALF]}),
    ],
)
def test_half_a_character_is_refused_in_every_shape(kind: type[BaseModel], message: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(message)
    kind.model_validate(json.loads(json.dumps(message).replace("\\ud83d", "✓")))


@pytest.mark.parametrize(
    ("microseconds", "seconds"),
    [(2_000_000, 2.0), (1.5, 1.5e-6), (10**400, 1e9), (0, None), (-1, None), (True, None), ("soon", None), (None, None)],
)
def test_a_timeout_in_microseconds_is_read_and_anything_else_ignored(microseconds: object, seconds: float | None) -> None:
    request = {"inputs": [TENSOR], "parameters": {} if microseconds is None else {"timeout": microseconds}}
    assert parse_inference(json.dumps(request).encode(), None).timeout == seconds


@pytest.mark.parametrize("shape", [[2**32, 2**32], [-1, -1], [-1], [2], [1] * 100, [0], [2**63, 2]])
def test_a_shape_of_another_size_than_the_texts_is_refused(shape: list[int]) -> None:
    for data in (["good"], []):
        if math.prod(shape) == len(data):
            continue
        with pytest.raises(Malformed):
            parse_inference(json.dumps({"inputs": [TENSOR | {"shape": shape, "data": data}]}).encode(), None)


def test_answers_keep_the_order_and_name_the_adapter() -> None:
    request = ClassifyRequest(model="a", input=["no", "longer", "much, much longer"])
    response = classify_response(request, [answer_of(Result(NO), Result(YES), Result(LONG, truncated=True))])
    assert [(entry.index, entry.label, entry.truncated) for entry in response.data] == [
        (0, "no", False),
        (1, "yes", False),
        (2, "yes", True),
    ]
    assert response.data[0].probs == pytest.approx([0.9, 0.1])
    assert (response.task, response.adapter_version, response.adapter_digest) == ("a", 3, "digest-3")
    assert response.labels == ["no", "yes"]
    assert response.usage.prompt_tokens == response.usage.total_tokens == 25


def test_a_list_of_models_is_answered_text_by_text_and_each_entry_names_its_model() -> None:
    request = ClassifyRequest(model=["a", "b@base"], input=["no", "longer"])
    answers = [
        answer_of(Result(NO), Result(YES)),
        Answer("b@base", "b", None, "base", ["x", "y"], [Result(YES), Result(NO)], 30, queue_seconds=0.0015, model_seconds=0.25),
    ]
    response = classify_response(request, answers)
    assert [(entry.index, entry.model, entry.label, entry.adapter_version) for entry in response.data] == [
        (0, "a", "no", 3),
        (0, "b@base", "y", None),
        (1, "a", "yes", 3),
        (1, "b@base", "x", None),
    ]
    assert (response.model, response.task, response.labels) == ("a,b@base", "a,b", [])
    assert (response.adapter_version, response.adapter_digest) == (None, "several")
    assert response.usage.prompt_tokens == 55
    assert response.models is not None
    assert [(model.model, model.task, model.labels, model.adapter_digest) for model in response.models] == [
        ("a", "a", ["no", "yes"], "digest-3"),
        ("b@base", "b", ["x", "y"], "base"),
    ]
    assert answers_headers(answers) == {"X-Queue-Time": "2", "X-Inference-Time": "250", "X-Tasks": "2"}


def test_one_model_by_its_name_is_answered_without_the_fields_of_several() -> None:
    body = classify_response(ClassifyRequest(model="a", input="no"), [answer_of(Result(NO))]).model_dump(mode="json")
    assert not {"model", "adapter_version"} & body["data"][0].keys()
    assert "models" not in body
    listed = classify_response(ClassifyRequest(model=["a"], input="no"), [answer_of(Result(NO))]).model_dump(mode="json")
    assert (listed["labels"], listed["adapter_digest"], listed["data"][0]["model"]) == (["no", "yes"], "digest-3", "a")


def test_a_single_text_is_refused_as_a_whole_if_no_task_can_classify_it() -> None:
    request, refused = ClassifyRequest(model=["a", "b"], input=""), answer_of(Result(None, refusal=EmptyText("empty")))
    with pytest.raises(EmptyText):
        classify_response(request, [refused, refused])
    first, second = classify_response(request, [refused, answer_of(Result(NO))]).data
    assert (first.error is not None, second.label) == (True, "no")


@pytest.mark.parametrize("models", [[], ["a", "a"], [""], ["a" * 201], [["a"]]])
def test_a_list_of_models_holds_names_and_each_once(models: list[Any]) -> None:
    with pytest.raises(ValidationError):
        ClassifyRequest.model_validate({"model": models, "input": "x"})


def test_headers_name_the_adapter_and_the_times_in_milliseconds() -> None:
    assert answer_headers(answer_of(Result(NO))) == {
        "X-Queue-Time": "2",
        "X-Inference-Time": "250",
        "X-Task": "a",
        "X-Adapter-Version": "3",
        "X-Adapter-Digest": "digest-3",
    }
    assert answer_headers(answer_of(Result(NO), version=None, digest="bare"))["X-Adapter-Version"] == "none"


def test_a_refused_text_is_an_error_in_its_place_or_of_the_whole_request() -> None:
    refused = Result(None, refusal=EmptyText("empty"))
    entry = classify_response(ClassifyRequest(model="a", input=["", "no"]), [answer_of(refused, Result(NO))]).data[0]
    assert entry.error is not None
    assert (entry.error.error, entry.label, entry.probs, entry.num_classes) == ("EmptyText", None, [], 2)
    with pytest.raises(EmptyText):
        classify_response(ClassifyRequest(model="a", input=""), [answer_of(refused)])


def test_top_k_lists_the_best_first_in_every_shape() -> None:
    answer = answer_of(Result(YES))
    (entry,) = classify_response(ClassifyRequest(model="a", input="longer", top_k=1), [answer]).data
    assert entry.top is not None
    assert [score.label for score in entry.top] == ["yes"]
    flat = predict_response(PredictRequest(inputs="longer"), answer)
    assert [score.label for score in flat] == ["yes", "no"]  # type: ignore[union-attr]  # flat for one text
    (nested,) = hub_response(HubRequest.model_validate({"inputs": "longer", "parameters": {"top_k": 1}}), answer)
    assert [score.label for score in nested] == ["yes"]  # type: ignore[union-attr]  # no error among them


async def test_a_service_whose_engine_has_stopped_refuses_every_request_and_stays_alive(tmp_path: Path) -> None:
    app = create_app(Settings.model_validate({"model": "tiny", "adapter_folder": tmp_path, "open_access": True}))
    app.state.authenticator, app.state.classifier, app.state.engine = OpenAccess(), object(), SimpleNamespace(alive=False)
    requests: dict[str, dict[str, Any] | None] = {
        "/v1/models": None,
        "/v1/models/a": None,
        "/v1/classify": {"model": "a", "input": "good"},
        "/predict": {"inputs": "good"},
        "/models/a": {"inputs": "good"},
        "/info": None,
        "/v2/health/ready": None,
        "/v2/models/a": None,
        "/v2/models/a/ready": None,
        "/v2/models/a/versions/1": None,
        "/v2/models/a/versions/1/ready": None,
        "/v2/models/a/infer": {"inputs": [TENSOR]},
        "/v2/models/a/versions/1/infer": {"inputs": [TENSOR]},
    }
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as http:
        for path, message in requests.items():
            response = await http.get(path) if message is None else await http.post(path, json=message)
            assert (response.status_code, "the engine has failed" in response.text) == (503, True), path
        assert (await http.get("/livez")).status_code == 200
        readiness = await http.get("/readyz")
    assert (readiness.status_code, readiness.json()["checks"]["model"]) == (503, "the engine has stopped")


async def test_no_request_of_anybody_gives_500_and_no_body_of_a_stranger_is_read(tmp_path: Path) -> None:
    app = create_app(Settings.model_validate({"model": "tiny", "adapter_folder": tmp_path, "open_access": True}))
    app.state.classifier, app.state.engine = SimpleNamespace(for_caller=lambda _name: object()), SimpleNamespace(alive=True)
    read = []

    async def body() -> AsyncIterator[bytes]:
        read.append(True)
        yield b"{}"

    deep, half = b"[" * 100_000, b'{"inputs": "\\ud800", "model": "\\ud800", "input": "\\ud800", "id": "\\ud800"}'
    bodies = [
        deep,
        half,
        b'{"inputs": ' + deep,
        b'{"model": ' + b"9" * 5000 + b"}",
        b"\xff",
        b"null",
        b"",
        b'{"inputs": [[1e999]]}',
    ]
    bodies.append(json.dumps({f"k{number}": number for number in range(20_000)}).encode())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as http:
        for path in ("/v1/classify", "/predict", "/models/%C3%A9", "/v2/models/%C3%A9/infer", "/v2/models/a/versions/1/infer"):
            app.state.authenticator = ApiKeys({}, FailedAttempts(1000, Metrics(CollectorRegistry()).failed_attempts))
            for token in (b"", b"Bearer \xe9", b"Bearer wrong"):
                headers = {b"Authorization": token, b"Content-Type": b"application/json"}
                assert (await http.post(path, content=body(), headers=headers)).status_code == 401
            app.state.authenticator = OpenAccess()
            for content in bodies:
                answer = await http.post(path, content=content, headers={"Content-Type": "application/json"})
                assert (answer.status_code, answer.json()["error"]) == (422, "Malformed"), f"{path} {content[:40]!r}"
                assert len(answer.content) < 5000
        assert read == []
