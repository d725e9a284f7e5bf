"""What can be wrong with manifests that a cluster would take, or only then refuse: fields, ports, selectors, rights. A sentence each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import kubernetes_validate

from tests.unit.deploy.manifests import Manifest, Manifests, Pod, called, of_kind, pods, selects

OLDEST, NEWEST = "1.30", "1.37"  # of Kubernetes: the first with a preStop sleep, and the last that the schemas here know
MONITORING = "monitoring.coreos.com/v1"


def unknown_to_kubernetes(manifests: Manifests) -> list[str]:
    """Fields that the schema does not have, lacks, or has with another type."""
    return [
        f"{called(one)}, Kubernetes {version}: {fault}"
        for one in manifests
        for version in (OLDEST, NEWEST)
        for fault in _schema_faults(one, version)
    ]


def _schema_faults(one: Manifest, version: str) -> list[str]:
    return _looked_up(json.dumps(one, sort_keys=True), version)


@cache
def _looked_up(text: str, version: str) -> list[str]:
    """Kept, since a look takes tens of milliseconds and most manifests are looked at many times."""
    one = json.loads(text)
    return list(_monitor_faults(one) if one["apiVersion"] == MONITORING else _resource_faults(one, version))


def _resource_faults(one: Manifest, version: str) -> Iterator[str]:
    try:
        kubernetes_validate.validate(one, version, strict=True)
    except kubernetes_validate.ValidationError as reason:
        yield f"{'.'.join(map(str, reason.path))}: {reason.message}"


def _monitor_faults(one: Manifest) -> Iterator[str]:
    """The Prometheus operator's own types: what they do not know, they drop."""
    from cloudcoil.models.prometheus_operator import v1  # takes seconds to import
    from pydantic import ValidationError

    try:
        kept = getattr(v1, one["kind"]).model_validate(one).model_dump(by_alias=True, exclude_unset=True, mode="json")
    except ValidationError as reason:
        yield str(reason)
        return
    if kept != one:
        yield f"the Prometheus operator would keep only {kept['spec']}"


def lost_ports(manifests: Manifests) -> list[str]:
    """Ports that a probe, a service, an ingress, a monitor or a policy names and nobody listens on."""
    return [
        *(fault for pod in pods(manifests) for fault in _probes(pod)),
        *(fault for one in of_kind(manifests, "Service") for fault in _service_ports(one, manifests)),
        *(fault for one in of_kind(manifests, "Ingress") for fault in _ingress_ports(one, manifests)),
        *(fault for one in of_kind(manifests, "ServiceMonitor") for fault in _monitor_ports(one, manifests)),
        *(fault for one in of_kind(manifests, "NetworkPolicy") for fault in _policy_ports(one, manifests)),
    ]


def _probes(pod: Pod) -> Iterator[str]:
    for container in pod.containers:
        own = {port["name"] for port in container.get("ports", [])}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if probe in container and (port := container[probe]["httpGet"]["port"]) not in own:
                yield f"{pod.owner}: the {probe} of {container['name']} asks port {port}, which it does not have"


def _service_ports(service: Manifest, manifests: Manifests) -> Iterator[str]:
    for port in service["spec"]["ports"]:
        for pod in _selected({"matchLabels": service["spec"]["selector"]}, manifests):
            if port["targetPort"] not in pod.ports:
                yield f"{called(service)}: targetPort {port['targetPort']} is no port of {pod.owner}"


def _ingress_ports(ingress: Manifest, manifests: Manifests) -> Iterator[str]:
    known = {(one["metadata"]["name"], port["name"]) for one in of_kind(manifests, "Service") for port in one["spec"]["ports"]}
    for rule in ingress["spec"]["rules"]:
        for path in rule["http"]["paths"]:
            service = path["backend"]["service"]
            if (service["name"], service["port"].get("name")) not in known:
                yield f"{called(ingress)}: {path['path']} goes to {service['name']} {service['port']}, which is no service's port"


def _monitor_ports(monitor: Manifest, manifests: Manifests) -> Iterator[str]:
    services = [
        one for one in of_kind(manifests, "Service") if selects(monitor["spec"]["selector"], one["metadata"].get("labels", {}))
    ]
    for endpoint in monitor["spec"]["endpoints"]:
        if not any(port["name"] == endpoint["port"] for one in services for port in one["spec"]["ports"]):
            yield f"{called(monitor)}: port {endpoint['port']} is no port of a service that it selects"


def _policy_ports(policy: Manifest, manifests: Manifests) -> Iterator[str]:
    taken = {port for pod in _selected(policy["spec"]["podSelector"], manifests) for port in pod.ports.values()}
    for rule in policy["spec"].get("ingress", []):
        for port in rule.get("ports", []):
            if port["port"] not in taken:
                yield f"{called(policy)} lets callers in at {port['port']}, where none of its pods listens"
    for rule in policy["spec"].get("egress", []):
        for peer in rule["to"]:
            listening = {port for pod in _selected(_own(peer), manifests) for port in pod.ports.values()} if _own(peer) else None
            for port in rule.get("ports", []):
                if listening is not None and port["port"] not in listening:
                    yield f"{called(policy)} lets out to {port['port']}, where the pods it names do not listen"


def _own(peer: Manifest) -> Manifest | None:
    """The selector of a peer in the same namespace."""
    found: Manifest | None = None if "namespaceSelector" in peer else peer.get("podSelector")
    return found


def _selected(selector: Manifest, manifests: Manifests) -> list[Pod]:
    return [pod for pod in pods(manifests) if selects(selector, pod.labels)]


def idle_selectors(manifests: Manifests) -> list[str]:
    """Selectors that take nothing, and names of deployments that are not there."""
    return [
        *(f"{words}: {selector} takes no pod" for words, selector in _selectors(manifests) if not _selected(selector, manifests)),
        *_lost_targets(manifests),
    ]


def _lost_targets(manifests: Manifests) -> Iterator[str]:
    for one in of_kind(manifests, "Deployment"):
        if not selects(one["spec"]["selector"], one["spec"]["template"]["metadata"]["labels"]):
            yield f"{called(one)}: its selector does not take its own pods"
    for pod in pods(manifests):
        if not all(selects(spread["labelSelector"], pod.labels) for spread in pod.spec.get("topologySpreadConstraints", [])):
            yield f"{pod.owner}: its topology spread does not count its own pods"
    for one in of_kind(manifests, "HorizontalPodAutoscaler"):
        target = one["spec"]["scaleTargetRef"]
        if f"{target['kind']} {target['name']}" not in map(called, manifests):
            yield f"{called(one)} scales {target['kind']} {target['name']}, which is not there"
    services = [one["metadata"].get("labels", {}) for one in of_kind(manifests, "Service")]
    for one in of_kind(manifests, "ServiceMonitor"):
        if not any(selects(one["spec"]["selector"], labels) for labels in services):
            yield f"{called(one)}: its selector takes no service"


def _selectors(manifests: Manifests) -> Iterator[tuple[str, Manifest]]:
    for one in of_kind(manifests, "Service"):
        yield called(one), {"matchLabels": one["spec"]["selector"]}
    for one in of_kind(manifests, "PodDisruptionBudget"):
        yield called(one), one["spec"]["selector"]
    for one in of_kind(manifests, "NetworkPolicy"):
        yield called(one), one["spec"]["podSelector"]
        for way, side in (("ingress", "from"), ("egress", "to")):
            peers: list[Any] = [peer for rule in one["spec"].get(way, []) for peer in rule.get(side, [])]
            yield from ((f"{called(one)}, {way}", selector) for selector in map(_own, peers) if selector is not None)


def needless_rights(manifests: Manifests) -> list[str]:
    """Containers that may more than they need, or take as much as they like."""
    return [f"{pod.owner}: {fault}" for pod in pods(manifests) for fault in _rights(pod)]


def _rights(pod: Pod) -> Iterator[str]:
    wanted = {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}}
    if any(pod.spec["securityContext"].get(key) != value for key, value in wanted.items()):
        yield f"its security context must hold {wanted}"
    if pod.spec.get("automountServiceAccountToken") is not False or pod.spec.get("enableServiceLinks") is not False:
        yield "it is given a token of the cluster, or variables of its services"
    locked = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    for container in pod.containers:
        if container.get("securityContext") != locked:
            yield f"the security context of {container['name']} must be {locked}"
        resources = container.get("resources", {})
        if {"cpu", "memory"} > set(resources.get("requests", {})) or "memory" not in resources.get("limits", {}):
            yield f"{container['name']} must request cpu and memory, and have a limit of memory"
        if not any(mount["mountPath"] == "/tmp" for mount in container.get("volumeMounts", [])):
            yield f"{container['name']} has nowhere to write: mount an empty folder at /tmp"
