"""Each look at the manifests is able to fail: one thing is spoilt in what was rendered, and the sentence names it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.deploy import faults, given
from tests.unit.deploy.manifests import Manifest, Manifests, named, rendered

Spoil = Callable[[Manifests], Any]


def spec(kind: str, name: str, manifests: Manifests) -> Manifest:
    found: Manifest = named(manifests, kind, name)["spec"]
    return found


def pod(name: str, manifests: Manifests, kind: str = "Deployment") -> Manifest:
    found: Manifest = spec(kind, name, manifests)["template"]["spec"]
    return found


def main(name: str, manifests: Manifests) -> Manifest:
    found: Manifest = pod(name, manifests)["containers"][0]
    return found


def gone(kind: str, starts: str, manifests: Manifests) -> None:
    manifests[:] = [one for one in manifests if not (one["kind"] == kind and one["metadata"]["name"].startswith(starts))]


def configuration(starts: str, manifests: Manifests) -> dict[str, str]:
    return next(one["data"] for one in manifests if one["kind"] == "ConfigMap" and one["metadata"]["name"].startswith(starts))


def secret(starts: str, manifests: Manifests) -> dict[str, str]:
    return next(one["data"] for one in manifests if one["kind"] == "Secret" and one["metadata"]["name"].startswith(starts))


def variable(name: str, service: str, manifests: Manifests) -> Manifest:
    return next(one for one in main(service, manifests)["env"] if one["name"] == name)


SPOILT: list[tuple[Callable[[Manifests], list[str]], Spoil, str]] = [
    (faults.unknown_to_kubernetes, lambda m: main("inference", m).update(livenesProbe={}), "'livenesProbe' was unexpected"),
    (faults.unknown_to_kubernetes, lambda m: spec("Deployment", "aggregator", m).pop("selector"), "'selector' is a required property"),
    (faults.unknown_to_kubernetes, lambda m: spec("HorizontalPodAutoscaler", "inference", m).update(maxReplicas="8"), "maxReplicas: '8'"),
    (faults.unknown_to_kubernetes, lambda m: spec("NetworkPolicy", "stores", m)["egress"][0].update({"from": []}), "'from' was unexpected"),
    (faults.unknown_to_kubernetes, lambda m: spec("ServiceMonitor", "inference", m).update(jobLable="x"), "would keep only"),
    (faults.unknown_to_kubernetes, lambda m: spec("ServiceMonitor", "inference", m).pop("selector"), "selector"),
    (faults.lost_ports, lambda m: main("inference", m)["readinessProbe"]["httpGet"].update(port="htp"), "asks port htp"),
    (faults.lost_ports, lambda m: main("aggregator", m)["ports"][0].update(name="web"), "targetPort http is no port of Deployment aggregator"),
    (faults.lost_ports, lambda m: spec("Service", "inference", m)["ports"][0].update(name="api"), "Ingress ifed-icl: /v1 goes to inference"),
    (faults.lost_ports, lambda m: spec("Service", "inference", m)["ports"][0].update(name="api"), "ServiceMonitor inference: port http"),
    (faults.lost_ports, lambda m: spec("NetworkPolicy", "aggregator", m)["ingress"][0]["ports"][0].update(port=8000), "lets callers in at 8000"),
    (faults.lost_ports, lambda m: spec("NetworkPolicy", "inference", m)["egress"][0]["ports"][0].update(port=8081), "lets out to 8081"),
    (faults.idle_selectors, lambda m: spec("Service", "aggregator", m)["selector"].update(tier="web"), "Service aggregator"),
    (
        faults.idle_selectors,
        lambda m: spec("NetworkPolicy", "stores", m)["podSelector"]["matchExpressions"][0].update(values=["agregator"]),
        "NetworkPolicy stores",
    ),
    (faults.idle_selectors, lambda m: spec("HorizontalPodAutoscaler", "inference", m)["scaleTargetRef"].update(name="infer"), "Deployment infer"),
    (faults.idle_selectors, lambda m: spec("Deployment", "inference", m)["selector"]["matchLabels"].update(a="b"), "not take its own pods"),
    (
        faults.idle_selectors,
        lambda m: pod("inference", m)["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"].update(a="b"),
        "does not count its own pods",
    ),
    (faults.idle_selectors, lambda m: spec("ServiceMonitor", "inference", m)["selector"]["matchLabels"].update(a="b"), "takes no service"),
    (faults.needless_rights, lambda m: main("aggregator", m)["securityContext"].update(readOnlyRootFilesystem=False), "aggregator must be"),
    (faults.needless_rights, lambda m: pod("migrate", m, "Job")["securityContext"].pop("runAsNonRoot"), "Job migrate"),
    (faults.needless_rights, lambda m: pod("inference", m).pop("automountServiceAccountToken"), "token of the cluster"),
    (faults.needless_rights, lambda m: main("inference", m)["resources"].pop("limits"), "limit of memory"),
    (faults.needless_rights, lambda m: main("inference", m)["volumeMounts"].pop(1), "nowhere to write"),
    (given.unread_settings, lambda m: configuration("inference", m).update(TREADS="2"), "is given TREADS, which nothing reads"),
    (given.unread_settings, lambda m: configuration("aggregator", m).update(PORT="eighty"), "would not start: port"),
    (given.unread_settings, lambda m: main("inference", m)["env"].pop(), "set READER_TOKEN or READER_TOKEN_FILE"),
    (given.unread_settings, lambda m: secret("aggregator", m).update(ADMIN_TOKEN="c2hvcnQ="), "fewer than 16 characters"),
    (given.unread_settings, lambda m: secret("aggregator", m).update(DATABASE_URL="bXlzcWw6Ly9h"), "begins with postgresql"),
    (given.unread_settings, lambda m: configuration("model", m).pop("MODEL"), "$(MODEL) is given nowhere"),
    (given.missing, lambda m: secret("aggregator", m).pop("REDIS_URL"), "no key REDIS_URL in a secret aggregator"),
    (given.missing, lambda m: secret("aggregator", m).pop("ADMIN_TOKEN"), "no key ADMIN_TOKEN in aggregator"),
    (given.missing, lambda m: gone("Secret", "inference", m), "no secret inference"),
    (given.missing, lambda m: gone("ConfigMap", "model", m), "no ConfigMap model"),
    (given.missing, lambda m: gone("PersistentVolumeClaim", "models", m), "no claim models"),
    (given.missing, lambda m: gone("ServiceAccount", "fetch", m), "no service account fetch-model"),
    (given.missing, lambda m: variable("READER_TOKEN_FILE", "inference", m).update(value="/run/secrets/ifed/TOKEN"), "where no secret is mounted"),
    (given.missing, lambda m: configuration("model", m).update(MODEL_CACHE="/cache"), "is /cache, where nothing is mounted"),
    (given.missing, lambda m: main("inference", m)["volumeMounts"][0].update(name="model"), "mounts model, which is no volume"),
    (given.wrong_address, lambda m: configuration("inference", m).update(AGGREGATOR_URL="http://agregator:8080"), "which is no service"),
    (given.wrong_address, lambda m: configuration("inference", m).update(AGGREGATOR_URL="http://aggregator:80"), "names port 80"),
]  # fmt: skip


@pytest.mark.parametrize(("look", "spoil", "words"), SPOILT, ids=lambda value: getattr(value, "__name__", str(value)[:40]))
def test_a_spoilt_manifest_is_seen(look: Callable[[Manifests], list[str]], spoil: Spoil, words: str) -> None:
    manifests = rendered("production")
    spoil(manifests)
    assert any(words in sentence for sentence in look(manifests)), look(manifests)
