"""The connections that the network policies allow a pod."""

from __future__ import annotations

from typing import Any

from tests.unit.deploy.manifests import Manifests, Pod, of_kind, pods, selects

ANYWHERE = ("anywhere", 0)


def egress_of(pod: Pod, manifests: Manifests) -> set[tuple[str, int]]:
    """Return the peers and ports that the pod may connect to, DNS left out.

    A peer is the owner of a pod, a network, or `anywhere` when no policy restricts the pod.
    """
    return _connections(pod, manifests, "Egress", "to") - {("kube-dns", 53)}


def ingress_of(pod: Pod, manifests: Manifests) -> set[tuple[str, int]]:
    """Return the peers that may connect to the pod, and the pod's ports that they may connect to."""
    return {
        (peer, port)
        for peer, port in _connections(pod, manifests, "Ingress", "from")
        if (peer, port) == ANYWHERE or port in pod.ports.values()
    }


def _connections(pod: Pod, manifests: Manifests, kind: str, side: str) -> set[tuple[str, int]]:
    policies = [
        manifest["spec"]
        for manifest in of_kind(manifests, "NetworkPolicy")
        if kind in manifest["spec"]["policyTypes"] and selects(manifest["spec"]["podSelector"], pod.labels)
    ]
    if not policies:
        return {ANYWHERE}
    rules = [rule for policy in policies for rule in policy.get(kind.lower(), [])]
    return {
        (name, port["port"]) for rule in rules for peer in rule[side] for name in _names(peer, manifests) for port in rule["ports"]
    }


def _names(peer: dict[str, Any], manifests: Manifests) -> list[str]:
    if "ipBlock" in peer:
        return [peer["ipBlock"]["cidr"]]
    if "namespaceSelector" in peer:
        namespace = peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
        return [peer["podSelector"]["matchLabels"]["k8s-app"]] if "podSelector" in peer else [f"namespace {namespace}"]
    return [pod.owner for pod in pods(manifests) if selects(peer["podSelector"], pod.labels)]
