"""The service is what its OpenAPI description says: schemathesis sends what the description allows and what it forbids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from ifed import errors
from ifed.server import openapi
from services.inference.app import create_app
from services.inference.settings import Settings
from tests.integration.inference.conftest import KEY, Running

EXAMPLES = 15  # of each operation; the whole takes some seconds
BEARER = {"Authorization": f"Bearer {KEY}"}


# The description of an app that is never started: it does not depend on the model or on the tasks.
DESCRIPTION = create_app(Settings(adapter_folder=Path(), open_access=True, model="any")).openapi()
schema = schemathesis.openapi.from_dict(DESCRIPTION)


# A pair of texts, a blank text, a tensor with fewer texts than its shape says: refused with 422, and no JSON schema can say why.
UNSAYABLE = [positive_data_acceptance]
OTHERS = ("/livez", "/readyz", "/metrics")  # of every service


@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
def test_every_answer_is_one_that_the_description_allows(case: schemathesis.Case, running: Running) -> None:
    case.call_and_validate(base_url=running.url, headers=BEARER, excluded_checks=UNSAYABLE)


def parts(described: Any, schemas: dict[str, Any], place: str) -> Iterator[str]:
    """Places of a message's description that have no example and no default."""
    while "$ref" in described:
        described = schemas[described["$ref"].rsplit("/", 1)[1]]
    if {"example", "examples", "default", "const", "enum"} & described.keys():
        return
    if described.get("type") == "object" and "properties" in described:
        for name, field in described["properties"].items():
            yield from parts(field, schemas, f"{place}.{name}")
    elif described.get("type") == "array":
        yield from parts(described["items"], schemas, f"{place}[]")
    elif "anyOf" in described and {"type": "null"} not in described["anyOf"]:
        for kind in described["anyOf"]:
            yield from parts(kind, schemas, place)
    elif "anyOf" not in described and described.get("type") != "null" and described.get("format") != "binary":
        yield place


def test_every_message_of_the_description_has_an_example() -> None:
    bare: list[str] = []
    for path, operations in DESCRIPTION["paths"].items():
        if path in OTHERS:
            continue
        for method, operation in operations.items():
            messages = {"request": operation.get("requestBody", {}), "answer": operation["responses"]["200"]}
            for side, message in messages.items():
                for kind, body in message.get("content", {}).items():
                    if "example" not in body:
                        bare += parts(body["schema"], DESCRIPTION["components"]["schemas"], f"{method} {path} {side} {kind}")
    assert not bare, f"give these an example: {bare}"


def test_every_refusal_is_the_error_body_with_an_example_for_each_of_its_names() -> None:
    seen: set[str] = set()
    for operation in openapi.operations(DESCRIPTION):
        for status, answer in operation["responses"].items():
            if status.startswith("4") or (status.startswith("5") and "Readiness" not in str(answer)):
                ((kind, media),) = answer["content"].items()
                assert kind == "application/json"
                assert media["schema"]["$ref"].endswith("/ErrorBody")
                assert list(media["examples"]) == answer["description"].split(" or ")
                for name in media["examples"]:
                    assert str(errors.IFedError.known[name].status) == status
                seen |= media["examples"].keys()
    assert {"QueueFull", "DeadlineExceeded", "OtherModel", "PairNotSupported", "Unauthenticated"} <= seen


def test_metrics_and_readiness_show_what_this_service_says() -> None:
    for path, words in (("/metrics", "ifed_inference_requests_total"), ("/readyz", "adapters")):
        content = DESCRIPTION["paths"][path]["get"]["responses"]["200"]["content"]
        assert any(words in str(media["example"]) for media in content.values())
