"""Each check of the manifests can fail: one change breaks the rendered manifests, and the check names the fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.deploy import configuration_checks, manifest_checks
from tests.unit.deploy.manifests import Manifest, Manifests, named, of_kind, rendered

pytestmark = pytest.mark.slow

Change = Callable[[Manifests], Any]


def spec(kind: str, name: str, manifests: Manifests) -> Manifest:
    resource: Manifest = named(manifests, kind, name)["spec"]
    return resource


def pod(name: str, manifests: Manifests, kind: str = "Deployment") -> Manifest:
    template: Manifest = spec(kind, name, manifests)["template"]["spec"]
    return template


def container(name: str, manifests: Manifests) -> Manifest:
    first: Manifest = pod(name, manifests)["containers"][0]
    return first


def delete(kind: str, prefix: str, manifests: Manifests) -> None:
    manifests[:] = [
        manifest for manifest in manifests if not (manifest["kind"] == kind and manifest["metadata"]["name"].startswith(prefix))
    ]


def data(kind: str, prefix: str, manifests: Manifests) -> dict[str, str]:
    """The data of the ConfigMap or Secret whose name, which ends in a hash, begins with `prefix`."""
    return next(manifest["data"] for manifest in of_kind(manifests, kind) if manifest["metadata"]["name"].startswith(prefix))


def variable(name: str, service: str, manifests: Manifests) -> Manifest:
    return next(variable for variable in container(service, manifests)["env"] if variable["name"] == name)


FAULTS: list[tuple[Callable[[Manifests], list[str]], Change, str]] = [
    (manifest_checks.unknown_to_kubernetes, lambda m: container("inference", m).update(livenesProbe={}), "'livenesProbe' was unexpected"),
    (manifest_checks.unknown_to_kubernetes, lambda m: spec("ServiceMonitor", "inference", m).update(jobLable="x"), "would keep only"),
    (manifest_checks.unknown_to_kubernetes, lambda m: spec("ServiceMonitor", "inference", m).pop("selector"), "selector"),
    (manifest_checks.unknown_ports, lambda m: container("inference", m)["readinessProbe"]["httpGet"].update(port="htp"), "calls port htp"),
    (manifest_checks.unknown_ports, lambda m: container("aggregator", m)["ports"][0].update(name="web"), "targetPort http is no port of Deployment aggregator"),
    (manifest_checks.unknown_ports, lambda m: spec("Service", "inference", m)["ports"][0].update(name="api"), "Ingress ifed-icl: /v1 goes to inference"),
    (manifest_checks.unknown_ports, lambda m: spec("Service", "inference", m)["ports"][1].update(name="api"), "ServiceMonitor inference: port metrics"),
    (manifest_checks.unknown_ports, lambda m: spec("NetworkPolicy", "aggregator", m)["ingress"][0]["ports"][0].update(port=8000), "allows ingress at 8000"),
    (manifest_checks.unknown_ports, lambda m: spec("NetworkPolicy", "inference", m)["egress"][0]["ports"][0].update(port=8081), "allows egress to 8081"),
    (manifest_checks.empty_selectors, lambda m: spec("Service", "aggregator", m)["selector"].update(tier="web"), "Service aggregator"),
    (
        manifest_checks.empty_selectors,
        lambda m: spec("NetworkPolicy", "stores", m)["podSelector"]["matchExpressions"][0].update(values=["agregator"]),
        "NetworkPolicy stores",
    ),
    (manifest_checks.empty_selectors, lambda m: spec("HorizontalPodAutoscaler", "inference", m)["scaleTargetRef"].update(name="infer"), "Deployment infer"),
    (manifest_checks.empty_selectors, lambda m: spec("Deployment", "inference", m)["selector"]["matchLabels"].update(a="b"), "does not select its own pods"),
    (
        manifest_checks.empty_selectors,
        lambda m: pod("inference", m)["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"].update(a="b"),
        "does not count its own pods",
    ),
    (manifest_checks.empty_selectors, lambda m: spec("ServiceMonitor", "inference", m)["selector"]["matchLabels"].update(a="b"), "selects no service"),
    (manifest_checks.excess_privileges, lambda m: container("aggregator", m)["securityContext"].update(readOnlyRootFilesystem=False), "aggregator must be"),
    (manifest_checks.excess_privileges, lambda m: pod("migrate", m, "Job")["securityContext"].pop("runAsNonRoot"), "Job migrate"),
    (manifest_checks.excess_privileges, lambda m: pod("inference", m).pop("automountServiceAccountToken"), "token of the cluster"),
    (manifest_checks.excess_privileges, lambda m: container("inference", m)["resources"].pop("limits"), "limit of memory"),
    (manifest_checks.excess_privileges, lambda m: container("inference", m)["volumeMounts"].pop(1), "has no writable folder"),
    (configuration_checks.wrong_settings, lambda m: data("ConfigMap", "inference", m).update(TREADS="2"), "has the variable TREADS, which nothing reads"),
    (configuration_checks.wrong_settings, lambda m: data("ConfigMap", "aggregator", m).update(PORT="eighty"), "would not start: port"),
    (configuration_checks.wrong_settings, lambda m: container("inference", m)["env"].pop(), "set READER_TOKEN or READER_TOKEN_FILE"),
    (configuration_checks.wrong_settings, lambda m: data("Secret", "aggregator", m).update(DATABASE_URL="bXlzcWw6Ly9h"), "begins with postgresql"),
    (configuration_checks.wrong_settings, lambda m: data("ConfigMap", "model", m).pop("MODEL"), "$(MODEL) is set nowhere"),
    (configuration_checks.missing_references, lambda m: data("Secret", "aggregator", m).pop("REDIS_URL"), "no key REDIS_URL in a secret aggregator"),
    (configuration_checks.missing_references, lambda m: data("Secret", "aggregator", m).pop("ADMIN_TOKEN"), "no key ADMIN_TOKEN in aggregator"),
    (configuration_checks.missing_references, lambda m: delete("Secret", "inference", m), "no secret inference"),
    (configuration_checks.missing_references, lambda m: delete("ConfigMap", "model", m), "no ConfigMap model"),
    (configuration_checks.missing_references, lambda m: delete("PersistentVolumeClaim", "models", m), "no claim models"),
    (configuration_checks.missing_references, lambda m: delete("ServiceAccount", "fetch", m), "no service account fetch-model"),
    (configuration_checks.missing_references, lambda m: variable("READER_TOKEN_FILE", "inference", m).update(value="/run/secrets/ifed/TOKEN"), "where no secret is mounted"),
    (configuration_checks.missing_references, lambda m: data("ConfigMap", "model", m).update(MODEL_CACHE="/cache"), "is /cache, where nothing is mounted"),
    (configuration_checks.missing_references, lambda m: container("inference", m)["volumeMounts"][0].update(name="model"), "mounts model, which is no volume"),
    (configuration_checks.wrong_addresses, lambda m: data("ConfigMap", "inference", m).update(AGGREGATOR_URL="http://agregator:8080"), "which is no service"),
    (configuration_checks.wrong_addresses, lambda m: data("ConfigMap", "inference", m).update(AGGREGATOR_URL="http://aggregator:80"), "names port 80"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("check", "change", "message"), FAULTS, ids=[f"{check.__name__}-{message}" for check, _, message in FAULTS]
)
def test_a_check_names_the_fault(check: Callable[[Manifests], list[str]], change: Change, message: str) -> None:
    manifests = rendered("production")
    change(manifests)
    assert any(message in fault for fault in check(manifests)), check(manifests)
