"""Where the network policies let a pod go, and who they let in. Opens no connection."""

from __future__ import annotations

from typing import Any

from tests.unit.deploy.manifests import Manifests, Pod, of_kind, pods, selects

ANYWHERE = ("anywhere", 0)


def goes_to(pod: Pod, manifests: Manifests) -> set[tuple[str, int]]:
    """Peers and ports that the pod may call, names left out: a pod's owner, a network, or `anywhere` when no policy holds it back."""
    return _ways(pod, manifests, "Egress", "to") - {("kube-dns", 53)}


def lets_in(pod: Pod, manifests: Manifests) -> set[tuple[str, int]]:
    """Peers and the pod's own ports that they may call."""
    return {
        (peer, port)
        for peer, port in _ways(pod, manifests, "Ingress", "from")
        if (peer, port) == ANYWHERE or port in pod.ports.values()
    }


def _ways(pod: Pod, manifests: Manifests, kind: str, side: str) -> set[tuple[str, int]]:
    policies = [
        one["spec"]
        for one in of_kind(manifests, "NetworkPolicy")
        if kind in one["spec"]["policyTypes"] and selects(one["spec"]["podSelector"], pod.labels)
    ]
    if not policies:
        return {ANYWHERE}
    rules = [rule for policy in policies for rule in policy.get(kind.lower(), [])]
    return {
        (peer, port["port"]) for rule in rules for one in rule[side] for peer in _peers(one, manifests) for port in rule["ports"]
    }


def _peers(peer: dict[str, Any], manifests: Manifests) -> list[str]:
    if "ipBlock" in peer:
        return [peer["ipBlock"]["cidr"]]
    if "namespaceSelector" in peer:
        place = peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
        return [peer["podSelector"]["matchLabels"]["k8s-app"]] if "podSelector" in peer else [f"namespace {place}"]
    return [pod.owner for pod in pods(manifests) if selects(peer["podSelector"], pod.labels)]
