"""The overlays drain, scale, fit their limits of connections, and allow only the connections that are needed."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from services.inference.metrics import Metrics
from tests.house import promises
from tests.house.sources import ROOT
from tests.unit.deploy import configuration_checks, network_policies
from tests.unit.deploy.manifests import FOLDER, OVERLAYS, Manifests, Pod, named, of_kind, pod_of, pods, rendered

pytestmark = pytest.mark.slow

MAX_CONNECTIONS, RESERVED_CONNECTIONS = 100, 3  # Postgres' defaults; the reserved ones are for superusers
CLOSING_SECONDS = 5
DRAIN_SETTINGS = {"aggregator": "SHUTDOWN_SECONDS", "inference": "DRAIN_SECONDS"}
HEALTH = {"/livez", "/readyz", "/health", "/metrics"}
STORES, AGGREGATOR_ADDRESS = "10.20.0.0/24", "203.0.113.10/32"


@pytest.fixture
def production() -> Manifests:
    return rendered("production")


def setting(name: str, pod: Pod, manifests: Manifests) -> int:
    container = pod.spec["containers"][0]
    default = next(
        known.default for known in promises.settings_of(configuration_checks.service_of(container)) if known.name == name
    )
    return int(configuration_checks.environment(container, manifests).get(name, default))


def autoscaler(name: str, manifests: Manifests) -> dict[str, Any]:
    spec: dict[str, Any] = named(manifests, "HorizontalPodAutoscaler", name)["spec"]
    return spec


def test_every_image_is_of_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    images = {container["image"] for overlay in OVERLAYS for pod in pods(rendered(overlay)) for container in pod.containers}
    assert images == {
        f"ifed-icl/{name}:{version}" for name in ("aggregator", "inference", "client-agent", configuration_checks.FETCHING)
    }


@pytest.mark.parametrize("name", DRAIN_SETTINGS)
def test_a_pod_has_the_time_to_drain(name: str, production: Manifests) -> None:
    pod = pod_of(production, f"Deployment {name}")
    delay = pod.spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    needed = delay + setting(DRAIN_SETTINGS[name], pod, production) + CLOSING_SECONDS
    assert pod.spec["terminationGracePeriodSeconds"] >= needed


def test_the_connections_of_all_replicas_fit_into_postgres(production: Manifests) -> None:
    surge = named(production, "Deployment", "aggregator")["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
    replicas = autoscaler("aggregator", production)["maxReplicas"] + surge
    pool = setting("DATABASE_POOL_SIZE", pod_of(production, "Deployment aggregator"), production)
    migration = 1
    assert replicas * pool + migration <= MAX_CONNECTIONS - RESERVED_CONNECTIONS


def test_inference_uses_as_many_threads_as_it_requests_cores(production: Manifests) -> None:
    pod = pod_of(production, "Deployment inference")
    assert setting("THREADS", pod, production) == int(pod.spec["containers"][0]["resources"]["requests"]["cpu"])


@pytest.mark.parametrize("name", DRAIN_SETTINGS)
def test_another_replica_answers_while_one_is_replaced(name: str, production: Manifests) -> None:
    assert autoscaler(name, production)["minReplicas"] >= 2
    assert named(production, "PodDisruptionBudget", name)["spec"]["maxUnavailable"] == 1
    deployment = named(production, "Deployment", name)["spec"]
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert "replicas" not in deployment, "an apply would reset the number that the autoscaler chose"
    keys = {spread["topologyKey"] for spread in deployment["template"]["spec"]["topologySpreadConstraints"]}
    assert keys == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}


@pytest.mark.parametrize(
    ("overlay", "name"), [("production", "aggregator"), ("production", "inference"), ("client", "client-agent")]
)
def test_a_service_is_probed_at_routes_that_it_has(overlay: str, name: str) -> None:
    container = pod_of(rendered(overlay), f"Deployment {name}").spec["containers"][0]
    routes = promises.routes_of(promises.app_of(configuration_checks.service_of(container)))
    paths = {probe: container[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {f"GET {path}" for path in paths.values()} <= set(routes)
    assert paths["readinessProbe"] == "/readyz"
    assert paths["livenessProbe"] == "/livez", "an unreachable database is no reason to restart"


def series_of_inference() -> set[str]:
    """The series at /metrics: those of the class, and those that app.py adds when the model is loaded."""
    metrics = Metrics(CollectorRegistry())
    tree = ast.parse((ROOT / "services/inference/app.py").read_text(encoding="utf-8"))
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if ast.unparse(call.func) in ("metrics.watch", "metrics.watch_count"):
            metrics.watch(ast.literal_eval(call.args[0]), "of app.py", lambda: 0.0)
    metrics.record_answer("a", items=1, tokens=1, queue_seconds=1.0, model_seconds=1.0, seconds=1.0)
    return {sample.name for family in metrics.registry.collect() for sample in family.samples}


def adapter_rules() -> dict[str, dict[str, Any]]:
    """The rules of prometheus-adapter, by the name of their metric."""
    values = yaml.safe_load((FOLDER / "components/monitoring/adapter.yaml").read_text(encoding="utf-8"))
    return {rule["name"]["as"]: rule for rule in values["rules"]["custom"]}


def test_inference_scales_on_metrics_that_prometheus_adapter_computes(production: Manifests) -> None:
    names = [metric["pods"]["metric"]["name"] for metric in autoscaler("inference", production)["metrics"]]
    assert set(names) == set(adapter_rules())
    assert "ifed_inference_queue_seconds_mean" in names, "inference scales on its queue time"


@pytest.mark.parametrize("name", adapter_rules())
def test_prometheus_adapter_reads_series_that_inference_has(name: str) -> None:
    rule = adapter_rules()[name]
    series = set(re.findall(r"ifed_\w+(?=\{)", rule["seriesQuery"] + rule["metricsQuery"]))
    assert series
    assert series <= series_of_inference()
    assert set(rule["resources"]["overrides"]) == {"namespace", "pod"}, "metrics of type Pods are queried by both"
    assert rule["metricsQuery"].count("<<.LabelMatchers>>") == rule["metricsQuery"].count("<<.GroupBy>>") > 0


def test_the_aggregator_scales_on_cpu(production: Manifests) -> None:
    (metric,) = autoscaler("aggregator", production)["metrics"]
    assert metric["resource"]["name"] == "cpu"


def ingress_paths(name: str, manifests: Manifests) -> list[dict[str, Any]]:
    """The paths that the ingress routes to a service."""
    paths = [
        path for ingress in of_kind(manifests, "Ingress") for rule in ingress["spec"]["rules"] for path in rule["http"]["paths"]
    ]
    return [path for path in paths if path["backend"]["service"]["name"] == name]


def routed(path: str, entries: list[dict[str, Any]]) -> bool:
    return any(
        path == entry["path"] or (entry["pathType"] == "Prefix" and path.startswith(entry["path"].rstrip("/") + "/"))
        for entry in entries
    )


@pytest.mark.parametrize("name", DRAIN_SETTINGS)
def test_the_ingress_exposes_the_whole_api_and_nothing_else(name: str, production: Manifests) -> None:
    entries = ingress_paths(name, production)
    routes = {operation.split()[1] for operation in promises.routes_of(promises.app_of(name))}
    assert {path for path in routes if not routed(path, entries)} == HEALTH


def test_every_host_of_the_ingress_has_tls(production: Manifests) -> None:
    (ingress,) = of_kind(production, "Ingress")
    covered = {host for tls in ingress["spec"]["tls"] for host in tls["hosts"]}
    assert covered == {rule["host"] for rule in ingress["spec"]["rules"]}


def test_only_the_aggregator_and_its_migration_reach_the_stores(production: Manifests) -> None:
    egress = {pod.owner: network_policies.egress_of(pod, production) for pod in pods(production)}
    stores = {(STORES, 5432), (STORES, 6379)}
    assert egress == {
        "Deployment aggregator": stores,
        "Job migrate": stores,
        "Deployment inference": {("Deployment aggregator", 8080)},
        "Job fetch-model": {("0.0.0.0/0", 443)},
    }


def test_the_model_job_reaches_the_internet_but_no_private_network() -> None:
    for overlay in OVERLAYS:
        (rule,) = named(rendered(overlay), "NetworkPolicy", "fetch-model")["spec"]["egress"]
        assert rule["to"][0]["ipBlock"]["except"] == ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]


def test_the_services_accept_the_ingress_monitoring_and_each_other(production: Manifests) -> None:
    ingress = {pod.owner: network_policies.ingress_of(pod, production) for pod in pods(production)}
    assert ingress == {
        "Deployment aggregator": {("namespace traefik", 8080), ("namespace monitoring", 9100), ("Deployment inference", 8080)},
        "Deployment inference": {("namespace traefik", 8081), ("namespace monitoring", 9100)},
        "Job migrate": set(),
        "Job fetch-model": set(),
    }


def test_an_agent_reaches_the_aggregator_and_nothing_else() -> None:
    manifests = rendered("client")
    agent = pod_of(manifests, "Deployment client-agent")
    assert network_policies.egress_of(agent, manifests) == {(AGGREGATOR_ADDRESS, 443)}
    assert network_policies.ingress_of(agent, manifests) == set()


def test_without_the_deny_policy_a_pod_reaches_anything(production: Manifests) -> None:
    policies = {"nothing", "names", "inference"}
    without = [
        manifest
        for manifest in production
        if not (manifest["kind"] == "NetworkPolicy" and manifest["metadata"]["name"] in policies)
    ]
    assert network_policies.egress_of(pod_of(without, "Deployment inference"), without) == {network_policies.ANYWHERE}


def test_models_and_private_files_are_mounted_read_only() -> None:
    for overlay, owner in (("production", "Deployment inference"), ("client", "Deployment client-agent")):
        pod = pod_of(rendered(overlay), owner)
        mounts = [
            mount for container in pod.containers for mount in container["volumeMounts"] if mount["name"] in ("models", "private")
        ]
        assert mounts
        assert all(mount["readOnly"] for mount in mounts)


def test_git_ignores_the_files_that_hold_secrets() -> None:
    files = [example.with_suffix("") for example in (FOLDER / "overlays").rglob("*.env.example")]
    assert len(files) == 3
    ignored = subprocess.run(["git", "check-ignore", *files], cwd=ROOT, capture_output=True, text=True, check=False)
    assert len(ignored.stdout.splitlines()) == len(files), "add them to .gitignore"
