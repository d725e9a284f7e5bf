"""`docs/ref-task.md`, generated from the models of a task: `make task-reference` writes it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from ifed.messages.tasks import ModelIdentity, Policy, TaskSpec
from tests.house.sources import ROOT

PAGE = ROOT / "docs/ref-task.md"
COMMAND = "make task-reference"
Schema = Mapping[str, Any]
SECTIONS: Mapping[str, tuple[type[BaseModel], str]] = {
    "Task": (TaskSpec, "What `ifed task create` and `POST /v1/tasks` take."),
    "Policy": (
        Policy,
        "The fields of `policy`. [Aggregation](ref-aggregation.md) explains the rules and optimisers, [the method](explanation-method.md) the terms, and "
        "[decision 4](decisions/0004-defaults-of-a-task.md) and [decision 11](decisions/0011-defaults-of-the-second-generation.md) why the defaults are what they are.",
    ),
    "Identity": (
        ModelIdentity,
        "The fields of `identity`. The first client that joins sets it. Set it yourself to fix a model before anybody joins; every other "
        "model is then refused as `FingerprintMismatch`.",
    ),
}
TOP = f"""# Task

Every field of a task, generated from the code by `{COMMAND}`. A task is a JSON object. A field without a default is required, an unknown
field is refused (`Malformed`, 422), and so is a combination that cannot work.

```json
{{
  "name": "sentiment",
  "labels": ["negative", "positive"],
  "template": "Review: {{text}}\\nSentiment:",
  "model": "smollm2-135m",
  "policy": {{"clients_expected": 3, "quorum": 2}}
}}
```

```bash
ifed task create task.json --start
```
"""


def page() -> str:
    """Return the page as the code wants it.

    Raises:
        ValueError: a field has no description or no example.
    """
    parts = [TOP]
    for heading, (model, words) in SECTIONS.items():
        rows = "\n".join(f"| {' | '.join(_escaped(cell) for cell in row)} |" for row in fields(model))
        parts.append(
            f"## {heading}\n\n{words}\n\n| field | type | default | bounds | example | meaning |\n|---|---|---|---|---|---|\n{rows}\n"
        )
    return "\n".join(parts)


def fields(model: type[BaseModel]) -> Iterator[tuple[str, ...]]:
    """Yield field, type, default, bounds, example and meaning of each field of a model."""
    whole = model.model_json_schema()
    for name, schema in whole["properties"].items():
        if not schema.get("description"):
            raise ValueError(f"describe {model.__name__}.{name}: Field(description=…)")
        kinds, bounds = zip(*(_kind_and_bounds(part) for part in _alternatives(schema)), strict=True)
        yield (
            f"`{name}`",
            " or ".join(kinds),
            _default(schema),
            ", ".join(bound for bound in bounds if bound),
            _example(model, name, schema),
            schema["description"],
        )


def _default(schema: Schema) -> str:
    if "default" not in schema:
        return "required"
    if schema["default"] is None:
        return "not set"
    return "the defaults below" if isinstance(schema["default"], dict) else _code(schema["default"])


def _alternatives(schema: Schema) -> list[Schema]:
    """Return the types that a field may have, without null."""
    return [part for part in schema.get("anyOf", [schema]) if part.get("type") != "null"]


def _kind_and_bounds(schema: Schema) -> tuple[str, str]:
    """Return the type in words, and its bounds in words."""
    if "$ref" in schema:
        model = schema["$ref"].rpartition("/")[2]
        headings = [heading for heading, (kind, _) in SECTIONS.items() if kind.__name__ == model]
        return f"[object](#{headings[0].lower()})" if headings else "object", ""
    if "enum" in schema:
        return " or ".join(_code(value) for value in schema["enum"]), ""
    kind = schema["type"]
    if kind == "array":
        inner, bounds = _kind_and_bounds(schema["items"])
        size = _range(schema.get("minItems"), schema.get("maxItems"), "entries")
        return f"list of {inner}s", ", each ".join(part for part in (size, bounds) if part)
    if kind == "string":
        size = _range(schema.get("minLength"), schema.get("maxLength"), "characters")
        pattern = f"`{schema['pattern']}`" if "pattern" in schema else ""
        return "string", ", ".join(part for part in (size, pattern) if part)
    return kind, _limits(schema)


def _range(least: int | None, most: int | None, unit: str) -> str:
    if least is not None and most is not None:
        return f"{least:,} to {most:,} {unit}"
    return f"at least {least:,} {unit}" if least is not None else f"at most {most:,} {unit}" if most is not None else ""


def _limits(schema: Schema) -> str:
    """Return the bounds of a number, such as `> 0, ≤ 10`."""
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return ", ".join(f"{sign} {schema[key]:,}" for key, sign in signs.items() if key in schema)


def _example(model: type[BaseModel], name: str, schema: Schema) -> str:
    """Return an example in JSON: the first of the field's own, else its default."""
    if any("$ref" in part for part in _alternatives(schema)):
        return "–"
    if "examples" in schema:
        return _code(schema["examples"][0])
    if schema.get("default") is not None:
        return _code(schema["default"])
    raise ValueError(f"give {model.__name__}.{name} an example: Field(examples=[…])")


def _code(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return f"`{text if len(text) <= 40 else text[:12] + '…' + text[-1]}`"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
