"""What the documents must hold, taken from the code: settings, refusals, routes and commands. Writes nothing."""

from __future__ import annotations

import importlib
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

from ifed.errors import IFedError
from tests.house.sources import ROOT

SERVICES = {"Aggregator": "aggregator", "Client agent": "client_agent", "Inference": "inference"}
REQUIRED = {
    "admin_token": "a-token-of-more-than-32-characters",
    "aggregator_url": "http://127.0.0.1:9",
    "client_token": "token",
    "reader_token": "token",
    "task": "sentiment",
    "data_file": "texts.jsonl",
    "model": "smollm2-135m",
}


@dataclass(frozen=True)
class Setting:
    """One environment variable of one service."""

    name: str
    default: str
    description: str
    required: bool

    @property
    def row(self) -> str:
        """Its row in the settings reference."""
        default = self.default if self.required or self.default == "not set" else f"`{self.default}`"
        return f"| `{self.name}` | {default} | {self.description.replace('|', chr(92) + '|')} |"


def settings_class(service: str) -> type[BaseSettings]:
    """The settings of a service by its folder's name."""
    return importlib.import_module(f"services.{service}.settings").Settings  # type: ignore[no-any-return]


def settings_of(service: str) -> list[Setting]:
    """Every setting of a service, in the order of its class."""
    return [_setting(name, info) for name, info in settings_class(service).model_fields.items()]


def _setting(name: str, info: FieldInfo) -> Setting:
    return Setting(name.upper(), _default(info), info.description or "", info.is_required())


def _default(info: FieldInfo) -> str:
    value = info.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined or info.is_required():
        return "required"
    if value is None or value == () or value == {}:
        return "not set"
    return str(value).lower() if isinstance(value, bool) else str(value)


def setting_names() -> set[str]:
    """Return the names of every setting of every service."""
    return {setting.name for service in SERVICES.values() for setting in settings_of(service)}


@cache
def app_of(service: str) -> FastAPI:
    """A service's application, made and not started, with settings that stand in for a deployment's."""
    kind = settings_class(service)
    values: dict[str, Any] = {name: value for name, value in REQUIRED.items() if name in kind.model_fields}
    present = {name: os.environ.pop(name) for name in list(os.environ) if name.lower() in kind.model_fields}
    try:
        made: FastAPI = importlib.import_module(f"services.{service}.app").create_app(kind(_env_file=None, **values))
    finally:
        os.environ.update(present)
    return made


def compose_variables() -> set[str]:
    """Every variable that docker-compose.yml reads."""
    return set(re.findall(r"\$\{([A-Z_]+)", (ROOT / "docker-compose.yml").read_text(encoding="utf-8")))


def metrics_of(service: str, registry: CollectorRegistry) -> None:
    """Put what a service counts into `registry`."""
    importlib.import_module(f"services.{service}.metrics").Metrics(registry)


def routes_of(app: FastAPI) -> dict[str, Mapping[str, Any]]:
    """Every operation by `METHOD path`, as OpenAPI describes it."""
    paths: Mapping[str, Mapping[str, Any]] = app.openapi()["paths"]
    return {f"{method.upper()} {path}": operation for path, operations in paths.items() for method, operation in operations.items()}


def refusals() -> dict[str, type[IFedError]]:
    """Return every refusal by name: those of `ifed/errors.py`, and the one that only a client agent raises."""
    modules = ["ifed.errors", "services.client_agent.agent"]
    classes: dict[str, type[IFedError]] = {}
    for name in modules:
        module = importlib.import_module(name)
        own = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, IFedError)]
        classes |= {kind.__name__: kind for kind in own if kind.__module__ == name and kind is not IFedError}
    return classes


def commands_of(command: Any) -> Iterator[str]:
    """Return the words of every command below a group."""
    for name, inner in command.commands.items():
        if getattr(inner, "commands", None):
            yield from (f"{name} {words}" for words in commands_of(inner))
        else:
            yield name


def command_problems(line: str, root: Any) -> Iterator[str]:
    """What is wrong with an `ifed …` line, held against the command itself."""
    words = [word for word in shlex.split(line.split("|")[0].split(" > ")[0].rstrip(")"), comments=True) if word]
    command, words = root, words[1:]
    while words and (further := getattr(command, "commands", {}).get(words[0])) is not None:
        command, words = further, words[1:]
    if getattr(command, "commands", None) and not (words and words[0].startswith("-")):
        yield f"`{line}`: {command.name} has no command {words[0] if words else '(none given)'!r}"
        return
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    for word in words:
        if word.startswith("-") and word.split("=")[0] not in options:
            yield f"`{line}`: {command.name} has no option {word}; it has {', '.join(sorted(options))}"
