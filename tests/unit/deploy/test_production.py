"""What the production overlay promises beside being well-formed: drains, connections, scaling, and who reaches whom."""

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
from tests.unit.deploy import given, reach
from tests.unit.deploy.manifests import FOLDER, Manifests, Pod, named, of_kind, pod_of, pods, rendered

CONNECTIONS, KEPT_FOR_ADMINS = 100, 3  # what Postgres takes when nothing is set, and what of it only its superuser gets
CLOSING_SECONDS = 5
DRAINS = {"aggregator": "SHUTDOWN_SECONDS", "inference": "DRAIN_SECONDS"}
HEALTH = {"/livez", "/readyz", "/metrics"}
STORES, AGGREGATOR_ADDRESS = "10.20.0.0/24", "203.0.113.10/32"


@pytest.fixture
def production() -> Manifests:
    return rendered("production")


def setting(name: str, pod: Pod, manifests: Manifests) -> int:
    container = pod.spec["containers"][0]
    default = next(one.default for one in promises.settings_of(given.service_of(container)) if one.name == name)
    return int(given.environment(container, manifests).get(name, default))


def scaler(name: str, manifests: Manifests) -> dict[str, Any]:
    found: dict[str, Any] = named(manifests, "HorizontalPodAutoscaler", name)["spec"]
    return found


def test_every_image_is_of_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    images = {one["image"] for overlay in ("production", "client") for pod in pods(rendered(overlay)) for one in pod.containers}
    assert images == {f"ifed-icl/{name}:{version}" for name in ("aggregator", "inference", "client-agent", given.FETCHING)}


@pytest.mark.parametrize("name", DRAINS)
def test_a_pod_has_the_time_to_drain(name: str, production: Manifests) -> None:
    pod = pod_of(production, f"Deployment {name}")
    before = pod.spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    needed = before + setting(DRAINS[name], pod, production) + CLOSING_SECONDS
    assert pod.spec["terminationGracePeriodSeconds"] >= needed


def test_the_connections_of_all_replicas_fit_into_postgres(production: Manifests) -> None:
    surge = named(production, "Deployment", "aggregator")["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
    replicas = scaler("aggregator", production)["maxReplicas"] + surge
    pool = setting("DATABASE_POOL_SIZE", pod_of(production, "Deployment aggregator"), production)
    migration = 1
    assert replicas * pool + migration <= CONNECTIONS - KEPT_FOR_ADMINS


def test_inference_computes_in_as_many_threads_as_it_asks_for_cores(production: Manifests) -> None:
    pod = pod_of(production, "Deployment inference")
    assert setting("THREADS", pod, production) == int(pod.spec["containers"][0]["resources"]["requests"]["cpu"])


@pytest.mark.parametrize("name", DRAINS)
def test_one_replica_may_go_and_another_answers(name: str, production: Manifests) -> None:
    assert scaler(name, production)["minReplicas"] >= 2
    assert named(production, "PodDisruptionBudget", name)["spec"]["maxUnavailable"] == 1
    deployment = named(production, "Deployment", name)["spec"]
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert "replicas" not in deployment, "an apply would set back what the autoscaler chose"
    keys = {spread["topologyKey"] for spread in deployment["template"]["spec"]["topologySpreadConstraints"]}
    assert keys == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}


@pytest.mark.parametrize(
    ("overlay", "name"), [("production", "aggregator"), ("production", "inference"), ("client", "client-agent")]
)
def test_a_service_is_watched_at_routes_that_it_has(overlay: str, name: str) -> None:
    container = pod_of(rendered(overlay), f"Deployment {name}").spec["containers"][0]
    routes = promises.routes_of(promises.app_of(given.service_of(container)))
    asked = {probe: container[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {f"GET {path}" for path in asked.values()} <= set(routes)
    assert asked["readinessProbe"] == "/readyz"
    assert asked["livenessProbe"] == "/livez", "a database that is away is no reason to restart"


def shown_by_inference() -> set[str]:
    """The series of /metrics: those of its class, and those that app.py adds once the model is there."""
    metrics = Metrics(CollectorRegistry())
    tree = ast.parse((ROOT / "services/inference/app.py").read_text(encoding="utf-8"))
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if ast.unparse(call.func) in ("metrics.watch", "metrics.watch_count"):
            metrics.watch(ast.literal_eval(call.args[0]), "of app.py", lambda: 0.0)
    metrics.answered("a", items=1, tokens=1, queue=1.0, model=1.0, seconds=1.0, passes=[])
    return {sample.name for family in metrics.registry.collect() for sample in family.samples}


def adapter_rules() -> dict[str, dict[str, Any]]:
    """By the name of the metric that each makes."""
    values = yaml.safe_load((FOLDER / "components/monitoring/adapter.yaml").read_text(encoding="utf-8"))
    return {rule["name"]["as"]: rule for rule in values["rules"]["custom"]}


def test_inference_scales_on_metrics_that_the_adapter_makes(production: Manifests) -> None:
    wanted = [metric["pods"]["metric"]["name"] for metric in scaler("inference", production)["metrics"]]
    assert set(wanted) == set(adapter_rules())
    assert "ifed_inference_queue_seconds_mean" in wanted, "the wait for the model is what inference scales on"


@pytest.mark.parametrize("name", adapter_rules())
def test_the_adapter_reads_series_that_inference_shows(name: str) -> None:
    rule = adapter_rules()[name]
    read = set(re.findall(r"ifed_\w+(?=\{)", rule["seriesQuery"] + rule["metricsQuery"]))
    assert read
    assert read <= shown_by_inference()
    assert set(rule["resources"]["overrides"]) == {"namespace", "pod"}, "a metric of type Pods is asked for by both"
    assert rule["metricsQuery"].count("<<.LabelMatchers>>") == rule["metricsQuery"].count("<<.GroupBy>>") > 0


def test_the_aggregator_scales_on_cpu(production: Manifests) -> None:
    (metric,) = scaler("aggregator", production)["metrics"]
    assert metric["resource"]["name"] == "cpu"


def outside(name: str, manifests: Manifests) -> list[dict[str, Any]]:
    """The paths that the ingress takes for a service."""
    paths = [path for one in of_kind(manifests, "Ingress") for rule in one["spec"]["rules"] for path in rule["http"]["paths"]]
    return [path for path in paths if path["backend"]["service"]["name"] == name]


def taken(path: str, entries: list[dict[str, Any]]) -> bool:
    return any(
        path == entry["path"] or (entry["pathType"] == "Prefix" and path.startswith(entry["path"].rstrip("/") + "/"))
        for entry in entries
    )


@pytest.mark.parametrize("name", DRAINS)
def test_the_whole_api_is_reached_from_outside_and_nothing_else(name: str, production: Manifests) -> None:
    entries = outside(name, production)
    routes = {operation.split()[1] for operation in promises.routes_of(promises.app_of(name))}
    assert {path for path in routes if not taken(path, entries)} == HEALTH


def test_outside_everything_is_encrypted(production: Manifests) -> None:
    (ingress,) = of_kind(production, "Ingress")
    covered = {host for one in ingress["spec"]["tls"] for host in one["hosts"]}
    assert covered == {rule["host"] for rule in ingress["spec"]["rules"]}


def test_only_the_aggregator_and_its_migration_reach_the_stores(production: Manifests) -> None:
    going = {pod.owner: reach.goes_to(pod, production) for pod in pods(production)}
    stores = {(STORES, 5432), (STORES, 6379)}
    assert going == {
        "Deployment aggregator": stores,
        "Job migrate": stores,
        "Deployment inference": {("Deployment aggregator", 8080)},
        "Job fetch-model": {("0.0.0.0/0", 443)},
    }


def test_the_internet_of_the_model_job_leaves_the_inner_networks_out() -> None:
    for overlay in ("production", "client"):
        (rule,) = named(rendered(overlay), "NetworkPolicy", "fetch-model")["spec"]["egress"]
        assert rule["to"][0]["ipBlock"]["except"] == ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]


def test_the_services_let_in_callers_the_monitoring_and_each_other(production: Manifests) -> None:
    coming = {pod.owner: reach.lets_in(pod, production) for pod in pods(production)}
    assert coming == {
        "Deployment aggregator": {("namespace traefik", 8080), ("namespace monitoring", 8080), ("Deployment inference", 8080)},
        "Deployment inference": {("namespace traefik", 8081), ("namespace monitoring", 8081)},
        "Job migrate": set(),
        "Job fetch-model": set(),
    }


def test_an_agent_reaches_the_aggregator_and_nothing_else() -> None:
    manifests = rendered("client")
    agent = pod_of(manifests, "Deployment client-agent")
    assert reach.goes_to(agent, manifests) == {(AGGREGATOR_ADDRESS, 443)}
    assert reach.lets_in(agent, manifests) == set()


def test_without_the_policy_that_denies_a_pod_would_go_anywhere(production: Manifests) -> None:
    policies = {"nothing", "names", "inference"}
    without = [one for one in production if not (one["kind"] == "NetworkPolicy" and one["metadata"]["name"] in policies)]
    assert reach.goes_to(pod_of(without, "Deployment inference"), without) == {reach.ANYWHERE}


def test_models_and_private_files_are_read_and_never_written() -> None:
    for overlay, owner in (("production", "Deployment inference"), ("client", "Deployment client-agent")):
        pod = pod_of(rendered(overlay), owner)
        mounts = [mount for one in pod.containers for mount in one["volumeMounts"] if mount["name"] in ("models", "private")]
        assert mounts
        assert all(mount["readOnly"] for mount in mounts)


def test_git_ignores_the_files_that_hold_secrets() -> None:
    files = [example.with_suffix("") for example in (FOLDER / "overlays").rglob("*.env.example")]
    assert len(files) == 3
    ignored = subprocess.run(["git", "check-ignore", *files], cwd=ROOT, capture_output=True, text=True, check=False)
    assert len(ignored.stdout.splitlines()) == len(files), "add them to .gitignore"
