"""Every body of the HTTP API has an example, and every example is one that its message takes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel

from ifed import errors
from ifed.messages import clients, evaluations, events, rounds, tasks
from ifed.server import openapi, web
from services.aggregator.api.examples import EXAMPLES
from tests.house.promises import app_of

MESSAGES: dict[str, type[BaseModel]] = {
    name: kind
    for module in (clients, rounds, events, evaluations, tasks, web)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and issubclass(kind, BaseModel)
}
# Binary files, which the HTTP reference describes tensor by tensor; and a stream, which shows its messages one by one.
NO_EXAMPLE = {"application/vnd.safetensors"}


@pytest.fixture(scope="module")
def description() -> dict[str, Any]:
    return app_of("aggregator").openapi()


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_one_that_its_message_takes(name: str) -> None:
    MESSAGES[name].model_validate_json(json.dumps(EXAMPLES[name]))


def test_every_body_of_a_request_and_of_an_answer_has_an_example(description: dict[str, Any]) -> None:
    bare = []
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            bodies = {"request": operation.get("requestBody", {}), **operation["responses"]}
            for which, body in bodies.items():
                for kind, media in body.get("content", {}).items():
                    if kind not in NO_EXAMPLE and not media.keys() & {"example", "examples"}:
                        bare.append(f"{method.upper()} {path} {which} {kind}")
    assert bare == []


def test_every_refusal_is_the_error_body_with_a_refusal_that_exists(description: dict[str, Any]) -> None:
    for operation in openapi.operations(description):
        for status, answer in operation["responses"].items():
            if status.startswith("4") or (status == "503" and "Readiness" not in str(answer)):
                ((kind, media),) = answer["content"].items()
                assert kind == "application/json"
                assert media["schema"]["$ref"].endswith("/ErrorBody")
                for name in media["examples"]:
                    assert str(errors.IFedError.known[name].status) == status


def test_the_description_is_completed_once_and_the_same_when_asked_again() -> None:
    app = app_of("aggregator")
    assert app.openapi() is app.openapi()
