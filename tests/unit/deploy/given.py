"""What a container is given: settings, secrets, volumes. Sentences for what it does not read, lacks, or nobody provides."""

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

OTHERS = {"HOME", "HF_HOME", "HF_HUB_OFFLINE"}  # read by the interpreter and by huggingface_hub
FETCHING = "fetching"  # the agent's image and pip, which fetches models for both sides
SERVICE = re.compile(r"ifed-icl/([\w-]+):")
STARTS = re.compile(r"services\.(\w+)\.app")


def service_of(container: Manifest) -> str:
    """`client_agent` for the image `ifed-icl/client-agent:0.1.0`."""
    found = SERVICE.match(container["image"])
    assert found, f"{container['image']} is no image of this project with a version"
    return "client_agent" if found[1] == FETCHING else found[1].replace("-", "_")


def environment(container: Manifest, manifests: Manifests) -> dict[str, str]:
    """The variables of a container with their values; those of a missing map or secret are left out."""
    held: dict[str, str] = {}
    for source in container.get("envFrom", []):
        held |= values(manifests, "ConfigMap", source["configMapRef"]["name"]) or {}
    for one in container.get("env", []):
        reference = one.get("valueFrom", {}).get("secretKeyRef")
        if reference is None:
            held[one["name"]] = one["value"]
        elif (value := (values(manifests, "Secret", reference["name"]) or {}).get(reference["key"])) is not None:
            held[one["name"]] = value
    return held


def unread_settings(manifests: Manifests) -> list[str]:
    """Variables that the service does not read, and settings that it would refuse to start with."""
    return [
        f"{pod.owner}: {fault}" for pod in pods(manifests) for one in pod.containers for fault in _settings(one, pod, manifests)
    ]


def _settings(container: Manifest, pod: Pod, manifests: Manifests) -> Iterator[str]:
    service, given = service_of(container), environment(container, manifests)
    known = {setting.name for setting in promises.settings_of(service)}
    yield from (f"{container['name']} is given {name}, which nothing reads" for name in sorted(set(given) - known - OTHERS))
    for word in container["command"]:
        yield from (
            f"{container['name']}: {word} is given nowhere" for name in re.findall(r"\$\((\w+)\)", word) if name not in given
        )
    if any(STARTS.fullmatch(word) for word in container["command"]) or "services.aggregator.migrate" in container["command"]:
        yield from _refused(service, given, pod, manifests)


def _refused(service: str, given: dict[str, str], pod: Pod, manifests: Manifests) -> Iterator[str]:
    """Whether the service's own settings class takes what it is given, its secret files with what would be in them."""
    kind = promises.settings_class(service)
    present = {name: os.environ.pop(name) for name in list(os.environ) if name.lower() in kind.model_fields}
    with tempfile.TemporaryDirectory() as scratch:
        read: dict[str, Any] = {}
        for name, value in given.items():
            if name.endswith("_FILE") and (words := secret_at(value, pod, manifests)) is not None:
                file = Path(scratch) / name
                file.write_text(words, encoding="utf-8")
                value = str(file)
            read[name.lower()] = value
        try:
            kind(_env_file=None, **{name: value for name, value in read.items() if name in kind.model_fields})
        except ValidationError as reason:
            yield from (f"{service} would not start: {'.'.join(map(str, one['loc']))} {one['msg']}" for one in reason.errors())
        except OSError as reason:
            yield f"{service} would not start: {reason}"
        finally:
            os.environ.update(present)


def secret_at(path: str, pod: Pod, manifests: Manifests) -> str | None:
    """The words of the secret that a pod finds at a path."""
    for container in pod.containers:
        for mount in container.get("volumeMounts", []):
            secret = pod.volumes.get(mount["name"], {}).get("secret")
            if secret and PurePosixPath(path).parent == PurePosixPath(mount["mountPath"]):
                held = values(manifests, "Secret", secret["secretName"]) or {}
                keys = {item["path"]: item["key"] for item in secret.get("items", [{"key": key, "path": key} for key in held])}
                return held.get(keys.get(PurePosixPath(path).name, ""))
    return None


def missing(manifests: Manifests) -> list[str]:
    """Maps, secrets and their keys, claims, accounts, volumes and files that are named and that nothing provides."""
    return [f"{pod.owner}: {fault}" for pod in pods(manifests) for fault in (*_missing(pod, manifests), *_volumes(pod, manifests))]


def _missing(pod: Pod, manifests: Manifests) -> Iterator[str]:
    accounts = {one["metadata"]["name"] for one in of_kind(manifests, "ServiceAccount")}
    if (account := pod.spec["serviceAccountName"]) not in accounts:
        yield f"no service account {account}"
    for container in pod.containers:
        for source in container.get("envFrom", []):
            if values(manifests, "ConfigMap", (name := source["configMapRef"]["name"])) is None:
                yield f"no ConfigMap {name}"
        for one in container.get("env", []):
            if (key := one.get("valueFrom", {}).get("secretKeyRef")) and key["key"] not in (
                values(manifests, "Secret", key["name"]) or {}
            ):
                yield f"no key {key['key']} in a secret {key['name']}"
        mounted = {mount["name"]: mount["mountPath"] for mount in container.get("volumeMounts", [])}
        yield from (f"{container['name']} mounts {name}, which is no volume" for name in sorted(set(mounted) - set(pod.volumes)))
        for name, value in environment(container, manifests).items():
            if name.endswith("_FILE") and value.startswith("/run/secrets/") and secret_at(value, pod, manifests) is None:
                yield f"{name} is {value}, where no secret is mounted"
            elif value.startswith("/") and not any(PurePosixPath(value).is_relative_to(place) for place in mounted.values()):
                yield f"{name} of {container['name']} is {value}, where nothing is mounted"


def _volumes(pod: Pod, manifests: Manifests) -> Iterator[str]:
    claims = {one["metadata"]["name"] for one in of_kind(manifests, "PersistentVolumeClaim")}
    for volume in pod.volumes.values():
        if (claim := volume.get("persistentVolumeClaim", {}).get("claimName")) and claim not in claims:
            yield f"no claim {claim}"
        if secret := volume.get("secret"):
            held = values(manifests, "Secret", secret["secretName"])
            if held is None:
                yield f"no secret {secret['secretName']}"
            else:
                yield from (
                    f"no key {item['key']} in {secret['secretName']}" for item in secret.get("items", []) if item["key"] not in held
                )


def wrong_address(manifests: Manifests) -> list[str]:
    """A URL inside the cluster whose host is no service, or whose port is not its."""
    faults = []
    for pod in pods(manifests):
        for container in pod.containers:
            for name, value in environment(container, manifests).items():
                inside = re.fullmatch(r"http://([\w-]+):(\d+)/?", value)
                if inside and inside[1] not in {one["metadata"]["name"] for one in of_kind(manifests, "Service")}:
                    faults.append(f"{pod.owner}: {name} names {inside[1]}, which is no service")
                elif inside and int(inside[2]) not in {
                    port["port"] for port in named(manifests, "Service", inside[1])["spec"]["ports"]
                }:
                    faults.append(f"{pod.owner}: {name} names port {inside[2]}, which {inside[1]} does not have")
    return faults
