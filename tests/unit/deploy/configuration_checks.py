"""Faults in what a container is given: settings, secrets and volumes. Each check returns one sentence per fault."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from tests.house import promises
from tests.unit.deploy.manifests import Manifest, Manifests, Pod, named, of_kind, pods, values

OTHER_VARIABLES = {"HOME", "HF_HOME", "HF_HUB_OFFLINE"}  # read by the interpreter and by huggingface_hub
FETCHING = "fetching"  # the agent's image with pip, which downloads models for agents and inference
IMAGE = re.compile(r"ifed-icl/([\w-]+):")
MODULE = re.compile(r"services\.(\w+)\.app")


def service_of(container: Manifest) -> str:
    """Return the service of a container, such as `client_agent` for the image `ifed-icl/client-agent:0.1.0`."""
    match = IMAGE.match(container["image"])
    assert match, f"{container['image']} is no image of this project with a version"
    return "client_agent" if match[1] == FETCHING else match[1].replace("-", "_")


def environment(container: Manifest, manifests: Manifests) -> dict[str, str]:
    """Return the variables of a container with their values; those of a missing map or secret are left out."""
    variables: dict[str, str] = {}
    for source in container.get("envFrom", []):
        variables |= values(manifests, "ConfigMap", source["configMapRef"]["name"]) or {}
    for variable in container.get("env", []):
        reference = variable.get("valueFrom", {}).get("secretKeyRef")
        if reference is None:
            variables[variable["name"]] = variable["value"]
        elif (value := (values(manifests, "Secret", reference["name"]) or {}).get(reference["key"])) is not None:
            variables[variable["name"]] = value
    return variables


def wrong_settings(manifests: Manifests) -> list[str]:
    """Variables that the service does not read, and settings with which it would refuse to start."""
    return [
        f"{pod.owner}: {fault}"
        for pod in pods(manifests)
        for container in pod.containers
        for fault in _settings(container, pod, manifests)
    ]


def _settings(container: Manifest, pod: Pod, manifests: Manifests) -> Iterator[str]:
    service, variables = service_of(container), environment(container, manifests)
    names = {setting.name for setting in promises.settings_of(service)}
    for name in sorted(set(variables) - names - OTHER_VARIABLES):
        yield f"{container['name']} has the variable {name}, which nothing reads"
    for argument in container["command"]:
        for name in re.findall(r"\$\((\w+)\)", argument):
            if name not in variables:
                yield f"{container['name']}: {argument} is set nowhere"
    command = container["command"]
    if any(MODULE.fullmatch(argument) for argument in command) or "services.aggregator.migrate" in command:
        yield from _refused(service, variables, pod, manifests)


def _refused(service: str, variables: dict[str, str], pod: Pod, manifests: Manifests) -> Iterator[str]:
    """Validate the variables by the service's settings class, with its secret files holding what would be in them."""
    kind = promises.settings_class(service)
    present = {name: os.environ.pop(name) for name in list(os.environ) if name.lower() in kind.model_fields}
    with tempfile.TemporaryDirectory() as scratch:
        settings: dict[str, Any] = {}
        for name, value in variables.items():
            if name.endswith("_FILE") and (content := secret_at(value, pod, manifests)) is not None:
                file = Path(scratch) / name
                file.write_text(content, encoding="utf-8")
                value = str(file)
            settings[name.lower()] = value
        try:
            kind(_env_file=None, **{name: value for name, value in settings.items() if name in kind.model_fields})
        except ValidationError as reason:
            yield from (
                f"{service} would not start: {'.'.join(map(str, error['loc']))} {error['msg']}" for error in reason.errors()
            )
        except OSError as reason:
            yield f"{service} would not start: {reason}"
        finally:
            os.environ.update(present)


def secret_at(path: str, pod: Pod, manifests: Manifests) -> str | None:
    """Return the content of the secret that is mounted at a path of a pod; None when there is none."""
    for container in pod.containers:
        for mount in container.get("volumeMounts", []):
            secret = pod.volumes.get(mount["name"], {}).get("secret")
            if secret and PurePosixPath(path).parent == PurePosixPath(mount["mountPath"]):
                data = values(manifests, "Secret", secret["secretName"]) or {}
                keys = {item["path"]: item["key"] for item in secret.get("items", [{"key": key, "path": key} for key in data])}
                return data.get(keys.get(PurePosixPath(path).name, ""))
    return None


def missing_references(manifests: Manifests) -> list[str]:
    """Maps, secrets, keys, claims, accounts, volumes and files that are named and do not exist."""
    return [
        f"{pod.owner}: {fault}"
        for pod in pods(manifests)
        for fault in (*_container_references(pod, manifests), *_volume_references(pod, manifests))
    ]


def _container_references(pod: Pod, manifests: Manifests) -> Iterator[str]:
    accounts = {account["metadata"]["name"] for account in of_kind(manifests, "ServiceAccount")}
    if (account := pod.spec["serviceAccountName"]) not in accounts:
        yield f"no service account {account}"
    for container in pod.containers:
        for source in container.get("envFrom", []):
            if values(manifests, "ConfigMap", (name := source["configMapRef"]["name"])) is None:
                yield f"no ConfigMap {name}"
        for variable in container.get("env", []):
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            if reference and reference["key"] not in (values(manifests, "Secret", reference["name"]) or {}):
                yield f"no key {reference['key']} in a secret {reference['name']}"
        mounts = {mount["name"]: mount["mountPath"] for mount in container.get("volumeMounts", [])}
        yield from (f"{container['name']} mounts {name}, which is no volume" for name in sorted(set(mounts) - set(pod.volumes)))
        for name, value in environment(container, manifests).items():
            if name.endswith("_FILE") and value.startswith("/run/secrets/") and secret_at(value, pod, manifests) is None:
                yield f"{name} is {value}, where no secret is mounted"
            elif value.startswith("/") and not any(PurePosixPath(value).is_relative_to(path) for path in mounts.values()):
                yield f"{name} of {container['name']} is {value}, where nothing is mounted"


def _volume_references(pod: Pod, manifests: Manifests) -> Iterator[str]:
    claims = {claim["metadata"]["name"] for claim in of_kind(manifests, "PersistentVolumeClaim")}
    for volume in pod.volumes.values():
        if (claim := volume.get("persistentVolumeClaim", {}).get("claimName")) and claim not in claims:
            yield f"no claim {claim}"
        if secret := volume.get("secret"):
            name, data = secret["secretName"], values(manifests, "Secret", secret["secretName"])
            if data is None:
                yield f"no secret {name}"
            else:
                yield from (f"no key {item['key']} in {name}" for item in secret.get("items", []) if item["key"] not in data)


def wrong_addresses(manifests: Manifests) -> list[str]:
    """URLs inside the cluster whose host is no service, or whose port is none of that service."""
    services = {service["metadata"]["name"] for service in of_kind(manifests, "Service")}
    faults = []
    for pod in pods(manifests):
        for container in pod.containers:
            for name, value in environment(container, manifests).items():
                if (url := re.fullmatch(r"http://([\w-]+):(\d+)/?", value)) is None:
                    continue
                if url[1] not in services:
                    faults.append(f"{pod.owner}: {name} names {url[1]}, which is no service")
                elif int(url[2]) not in {port["port"] for port in named(manifests, "Service", url[1])["spec"]["ports"]}:
                    faults.append(f"{pod.owner}: {name} names port {url[2]}, which {url[1]} does not have")
    return faults
