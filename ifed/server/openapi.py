"""Complete an OpenAPI description: an example for every body, and what the framework cannot know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

JSON = "application/json"
COMPONENTS = "#/components/schemas/"
METRICS = 'ifed_rounds_total{kind="context",state="closed",task="sentiment"} 1.0\n'
Description = dict[str, Any]


def complete(description: Description, examples: Mapping[str, object], *, metrics: str = METRICS) -> Description:
    """Add an example to each body, by the name of its schema, and to each refusal, by its class name.

    Args:
        description: as FastAPI generated it; changed in place.
        examples: JSON values by schema name; that of `Page_X_` follows from that of `X`.
        metrics: an example line of /metrics.
    """
    for operation in operations(description):
        for body in [operation.get("requestBody", {}), *operation["responses"].values()]:
            for media in body.get("content", {}).values():
                if (example := _example(media.get("schema", {}), examples)) is not None:
                    media["example"] = example
        for answer in operation["responses"].values():
            _refuse(answer)
    _metrics(description, metrics)
    return description


def operations(description: Description) -> Iterator[Description]:
    """Return every operation of a description."""
    for path in description["paths"].values():
        yield from path.values()


def _example(schema: Description, examples: Mapping[str, object]) -> object:
    references = [schema, *schema.get("anyOf", [])]
    for name in (reference["$ref"].removeprefix(COMPONENTS) for reference in references if "$ref" in reference):
        if name in examples:
            return examples[name]
        item = name.removeprefix("Page_").removesuffix("_")
        if item != name and item in examples:
            return {"items": [examples[item]], "next": None}
    return None


def _refuse(answer: Description) -> None:
    """Describe refusals as JSON, whatever the media type of a success is, with an example for each class."""
    content = answer.get("content", {})
    refusal = next((media for media in content.values() if media.get("schema", {}).get("$ref") == f"{COMPONENTS}ErrorBody"), None)
    if refusal is not None:
        names = answer["description"].split(" or ")
        examples = {name: {"value": {"error": name, "detail": "a sentence that says what to do"}} for name in names}
        answer["content"] = {JSON: refusal | {"examples": examples}}


def _metrics(description: Description, example: str) -> None:
    """Describe /metrics, which the library that mounts it leaves undescribed."""
    if (path_item := description["paths"].get("/metrics")) is not None:
        text = {"schema": {"type": "string"}, "example": example}
        path_item["get"]["responses"]["200"] = {"description": "counters for Prometheus", "content": {"text/plain": text}}
