"""Faults of manifests that a cluster accepts, or refuses only when they are applied. Each check returns one sentence per fault."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import kubernetes_validate

from tests.unit.deploy.manifests import Manifest, Manifests, Pod, name_of, of_kind, pods, selects

OLDEST, NEWEST = "1.30", "1.37"  # the first Kubernetes with a preStop sleep, and the last one of which there are schemas here
MONITORING = "monitoring.coreos.com/v1"


def unknown_to_kubernetes(manifests: Manifests) -> list[str]:
    """Fields that are unknown, missing or of the wrong type by the schema of Kubernetes or of the Prometheus operator."""
    return [
        f"{name_of(manifest)}, Kubernetes {version}: {fault}"
        for manifest in manifests
        for version in (OLDEST, NEWEST)
        for fault in _schema_faults(json.dumps(manifest, sort_keys=True), version)
    ]


@cache  # a validation takes tens of milliseconds, and most manifests are validated many times
def _schema_faults(text: str, version: str) -> list[str]:
    manifest = json.loads(text)
    return list(_monitor_faults(manifest) if manifest["apiVersion"] == MONITORING else _resource_faults(manifest, version))


def _resource_faults(manifest: Manifest, version: str) -> Iterator[str]:
    try:
        kubernetes_validate.validate(manifest, version, strict=True)
    except kubernetes_validate.ValidationError as reason:
        yield f"{'.'.join(map(str, reason.path))}: {reason.message}"


def _monitor_faults(manifest: Manifest) -> Iterator[str]:
    """The Prometheus operator silently drops fields that it does not know."""
    from cloudcoil.models.prometheus_operator import v1  # takes seconds to import
    from pydantic import ValidationError

    try:
        parsed = getattr(v1, manifest["kind"]).model_validate(manifest).model_dump(by_alias=True, exclude_unset=True, mode="json")
    except ValidationError as reason:
        yield str(reason)
        return
    if parsed != manifest:
        yield f"the Prometheus operator would keep only {parsed['spec']}"


def unknown_ports(manifests: Manifests) -> list[str]:
    """Ports that a probe, a service, an ingress, a monitor or a policy names and no container has."""
    return [
        *(fault for pod in pods(manifests) for fault in _probes(pod)),
        *(fault for service in of_kind(manifests, "Service") for fault in _service_ports(service, manifests)),
        *(fault for ingress in of_kind(manifests, "Ingress") for fault in _ingress_ports(ingress, manifests)),
        *(fault for monitor in of_kind(manifests, "ServiceMonitor") for fault in _monitor_ports(monitor, manifests)),
        *(fault for policy in of_kind(manifests, "NetworkPolicy") for fault in _policy_ports(policy, manifests)),
    ]


def _probes(pod: Pod) -> Iterator[str]:
    for container in pod.containers:
        ports = {port["name"] for port in container.get("ports", [])}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if probe in container and (port := container[probe]["httpGet"]["port"]) not in ports:
                yield f"{pod.owner}: the {probe} of {container['name']} calls port {port}, which it does not have"


def _service_ports(service: Manifest, manifests: Manifests) -> Iterator[str]:
    for port in service["spec"]["ports"]:
        for pod in _selected({"matchLabels": service["spec"]["selector"]}, manifests):
            if port["targetPort"] not in pod.ports:
                yield f"{name_of(service)}: targetPort {port['targetPort']} is no port of {pod.owner}"


def _ingress_ports(ingress: Manifest, manifests: Manifests) -> Iterator[str]:
    ports = {
        (service["metadata"]["name"], port["name"])
        for service in of_kind(manifests, "Service")
        for port in service["spec"]["ports"]
    }
    for rule in ingress["spec"]["rules"]:
        for path in rule["http"]["paths"]:
            backend = path["backend"]["service"]
            if (backend["name"], backend["port"].get("name")) not in ports:
                yield f"{name_of(ingress)}: {path['path']} goes to {backend['name']} {backend['port']}, which is no service's port"


def _monitor_ports(monitor: Manifest, manifests: Manifests) -> Iterator[str]:
    services = [
        service
        for service in of_kind(manifests, "Service")
        if selects(monitor["spec"]["selector"], service["metadata"].get("labels", {}))
    ]
    for endpoint in monitor["spec"]["endpoints"]:
        if not any(port["name"] == endpoint["port"] for service in services for port in service["spec"]["ports"]):
            yield f"{name_of(monitor)}: port {endpoint['port']} is no port of a service that it selects"


def _policy_ports(policy: Manifest, manifests: Manifests) -> Iterator[str]:
    own_ports = {port for pod in _selected(policy["spec"]["podSelector"], manifests) for port in pod.ports.values()}
    for rule in policy["spec"].get("ingress", []):
        for port in rule.get("ports", []):
            if port["port"] not in own_ports:
                yield f"{name_of(policy)} allows ingress at {port['port']}, where none of its pods listens"
    for rule in policy["spec"].get("egress", []):
        for peer in rule["to"]:
            if (selector := _selector_of(peer)) is None:
                continue
            peer_ports = {port for pod in _selected(selector, manifests) for port in pod.ports.values()}
            for port in rule.get("ports", []):
                if port["port"] not in peer_ports:
                    yield f"{name_of(policy)} allows egress to {port['port']}, where the selected pods do not listen"


def _selector_of(peer: Manifest) -> Manifest | None:
    """Return the pod selector of a peer in the same namespace; None for any other peer."""
    selector: Manifest | None = None if "namespaceSelector" in peer else peer.get("podSelector")
    return selector


def _selected(selector: Manifest, manifests: Manifests) -> list[Pod]:
    return [pod for pod in pods(manifests) if selects(selector, pod.labels)]


def empty_selectors(manifests: Manifests) -> list[str]:
    """Selectors that select nothing, and autoscalers of a deployment that does not exist."""
    return [
        *(
            f"{name}: {selector} selects no pod"
            for name, selector in _pod_selectors(manifests)
            if not _selected(selector, manifests)
        ),
        *_wrong_targets(manifests),
    ]


def _wrong_targets(manifests: Manifests) -> Iterator[str]:
    for deployment in of_kind(manifests, "Deployment"):
        if not selects(deployment["spec"]["selector"], deployment["spec"]["template"]["metadata"]["labels"]):
            yield f"{name_of(deployment)}: its selector does not select its own pods"
    for pod in pods(manifests):
        if not all(selects(spread["labelSelector"], pod.labels) for spread in pod.spec.get("topologySpreadConstraints", [])):
            yield f"{pod.owner}: its topology spread does not count its own pods"
    for autoscaler in of_kind(manifests, "HorizontalPodAutoscaler"):
        target = autoscaler["spec"]["scaleTargetRef"]
        if f"{target['kind']} {target['name']}" not in map(name_of, manifests):
            yield f"{name_of(autoscaler)} scales {target['kind']} {target['name']}, which does not exist"
    labels = [service["metadata"].get("labels", {}) for service in of_kind(manifests, "Service")]
    for monitor in of_kind(manifests, "ServiceMonitor"):
        if not any(selects(monitor["spec"]["selector"], of_service) for of_service in labels):
            yield f"{name_of(monitor)}: its selector selects no service"


def _pod_selectors(manifests: Manifests) -> Iterator[tuple[str, Manifest]]:
    for service in of_kind(manifests, "Service"):
        yield name_of(service), {"matchLabels": service["spec"]["selector"]}
    for budget in of_kind(manifests, "PodDisruptionBudget"):
        yield name_of(budget), budget["spec"]["selector"]
    for policy in of_kind(manifests, "NetworkPolicy"):
        yield name_of(policy), policy["spec"]["podSelector"]
        for direction, side in (("ingress", "from"), ("egress", "to")):
            peers: list[Any] = [peer for rule in policy["spec"].get(direction, []) for peer in rule.get(side, [])]
            selectors = map(_selector_of, peers)
            yield from ((f"{name_of(policy)}, {direction}", selector) for selector in selectors if selector is not None)


def excess_privileges(manifests: Manifests) -> list[str]:
    """Containers with more privileges than they need, or without limits of resources."""
    return [f"{pod.owner}: {fault}" for pod in pods(manifests) for fault in _privileges(pod)]


def _privileges(pod: Pod) -> Iterator[str]:
    required = {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}}
    if any(pod.spec["securityContext"].get(key) != value for key, value in required.items()):
        yield f"its security context must hold {required}"
    if pod.spec.get("automountServiceAccountToken") is not False or pod.spec.get("enableServiceLinks") is not False:
        yield "it gets a token of the cluster, or environment variables of its services"
    confined = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    for container in pod.containers:
        if container.get("securityContext") != confined:
            yield f"the security context of {container['name']} must be {confined}"
        resources = container.get("resources", {})
        if {"cpu", "memory"} > set(resources.get("requests", {})) or "memory" not in resources.get("limits", {}):
            yield f"{container['name']} must request cpu and memory, and have a limit of memory"
        if not any(mount["mountPath"] == "/tmp" for mount in container.get("volumeMounts", [])):
            yield f"{container['name']} has no writable folder: mount an empty one at /tmp"
