"""docker-compose.yml, the images and the dashboard keep what the documents promise, also where no Docker Engine is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from ifed.cli.demo.corpora import LABELS, SOURCES
from ifed.cli.demo.presets import DEFAULT_MODEL, preset_for
from ifed.messages.tasks import TaskSpec
from tests.compose import report
from tests.house import documents, promises
from tests.house.sources import ROOT

FILE = ROOT / "docker-compose.yml"
VARIABLE = re.compile(r"\$\{([A-Z_]+)(?::-([^}]*))?\}")
DOCKERFILES = sorted(
    path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("services/*/Dockerfile"), ROOT / "deploy/proxy/Dockerfile"]
)
OURS = "ifed-icl/"
AGENTS = [f"agent-{name}" for name in ("tweets", "movie-reviews", "product-reviews")]


def chosen(text: str) -> str:
    """The file as compose reads it when no variable is set."""
    return VARIABLE.sub(lambda match: match[2] or "", text).replace("$$", "$")


@cache
def project() -> dict[str, Any]:
    return dict(yaml.safe_load(chosen(FILE.read_text(encoding="utf-8"))))


@cache
def services() -> dict[str, dict[str, Any]]:
    return dict(project()["services"])


def sources_of(name: str) -> list[str]:
    """Names of the volumes and folders that a service mounts."""
    return [mount.split(":")[0] for mount in services()[name].get("volumes", [])]


def networks_of(name: str) -> set[str]:
    return set(services()[name]["networks"])


def test_compose_itself_takes_the_file() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("no docker with compose here; the other tests read the file without it, and make test-compose starts it")
    command = [docker, "compose", "--profile", "*", "--env-file", "/dev/null", "config", "--quiet"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def missing_names(name: str) -> list[str]:
    """Return what a service names and the file does not have."""
    service, whole = services()[name], project()
    missing = [f"service {other}" for other in service.get("depends_on", {}) if other not in services()]
    missing += [f"network {network}" for network in networks_of(name) if network not in whole["networks"]]
    missing += [f"secret {secret}" for secret in service.get("secrets", []) if secret not in whole["secrets"]]
    for source in sources_of(name):
        if not source.startswith("."):
            missing += [f"volume {source}"] if source not in whole["volumes"] else []
        elif not source.startswith("./secrets") and not (ROOT / source).exists():
            missing.append(f"file {source}")
    return missing


def test_everything_a_service_names_is_there() -> None:
    assert {name: missing for name in services() if (missing := missing_names(name))} == {}


def test_a_dependency_says_what_it_waits_for() -> None:
    for name, service in services().items():
        for other, wait in service.get("depends_on", {}).items():
            job = services()[other].get("restart") == "no"
            condition = "service_completed_successfully" if job else "service_healthy"
            assert wait["condition"] == condition, f"{name} waits for {other}, which is {'a job' if job else 'a service'}"


def test_every_service_is_confined() -> None:
    for name, service in services().items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        limits = service["deploy"]["resources"]["limits"]
        assert limits["memory"], name
        assert limits["pids"], name
        assert not service.get("privileged"), name


def test_no_secret_is_in_an_environment() -> None:
    for name, service in services().items():
        environment = service.get("environment", {})
        secret = [
            key for key in environment if re.search(r"PASSWORD|TOKEN|SECRET|KEY", key) and not key.endswith(("_FILE", "__FILE"))
        ]
        assert not secret, f"{name} takes {secret} from its environment; name a file"
        assert not re.search(r"://[^/@]*:[^/@]*@", json.dumps(environment)), f"{name} has a password in a URL"


def test_every_secret_is_a_file_that_make_makes() -> None:
    made = re.search(r"for name in (.*); do", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert made is not None
    assert set(made[1].split()) == set(project()["secrets"])
    assert {secret["file"] for secret in project()["secrets"].values()} == {f"./secrets/{name}" for name in made[1].split()}


def test_secrets_are_made_once_and_for_their_owner_alone(tmp_path: Path) -> None:
    command = ["make", "secrets", f"SECRETS={tmp_path / 'kept'}"]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    first = {path.name: path.read_text() for path in (tmp_path / "kept").iterdir() if path.is_file()}
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    assert first == {path.name: path.read_text() for path in (tmp_path / "kept").iterdir() if path.is_file()}
    assert set(first) == set(project()["secrets"])
    assert len(set(first.values())) == len(first)
    assert all(re.fullmatch("[0-9a-f]{64}", secret) for secret in first.values())
    assert (tmp_path / "kept").stat().st_mode & 0o077 == 0


def test_git_and_the_images_leave_secrets_out() -> None:
    assert "secrets/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    lines = [
        line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")
    ]
    assert lines[0] == "*"
    assert {line for line in lines if line.startswith("!")} == {
        f"!{name}" for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "ifed", "services")
    }


def test_an_agent_reaches_the_proxy_and_nothing_else() -> None:
    for agent in AGENTS:
        (network,) = networks_of(agent)
        assert project()["networks"][network] == {"internal": True}
        others = {name for name in services() if network in networks_of(name)} - {agent}
        assert others == {"proxy", f"prepare-{network}"}
        assert "ports" not in services()[agent]


def test_agents_mount_different_texts_read_only() -> None:
    data = {agent: [mount for mount in services()[agent]["volumes"] if ":/data" in mount] for agent in AGENTS}
    assert all(mount.endswith(":/data:ro") for (mount,) in data.values())
    assert len({mount for (mount,) in data.values()}) == len(AGENTS)
    shared = set.intersection(*(set(sources_of(agent)) for agent in AGENTS))
    assert shared == {"models"}


def test_the_truth_is_reached_by_the_aggregator_alone() -> None:
    assert project()["networks"]["data"] == {"internal": True}
    assert {name for name in services() if "data" in networks_of(name)} == {"postgres", "redis", "migrate", "aggregator"}
    assert {name for name in services() if "ports" in services()[name]} == {"proxy", "inference-proxy", "grafana"}
    for name in ("proxy", "inference-proxy", "grafana"):
        assert all(port.startswith("127.0.0.1:") for port in services()[name]["ports"]), f"{name} is open to the world by default"


def test_each_image_is_built_by_one_service() -> None:
    built = [service["image"] for service in services().values() if "build" in service]
    assert len(built) == len(set(built))
    for name, service in services().items():
        if service["image"].startswith(OURS):
            assert service["image"] in built
            assert "build" in service or service["pull_policy"] == "never", f"{name} would look for its image in a registry"


def test_two_aggregators_and_every_profile_are_there() -> None:
    assert services()["aggregator"]["deploy"]["replicas"] == 2
    profiles = {profile for service in services().values() for profile in service.get("profiles", [])}
    assert profiles == {"demo", "monitoring", "gpu", "tools"}
    assert {name for name in services() if "demo" in services()[name].get("profiles", [])} >= set(AGENTS)


def test_every_variable_is_in_the_example_environment_with_its_default() -> None:
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    variables = {(match[1], match[2] or "") for match in VARIABLE.finditer(FILE.read_text(encoding="utf-8"))}
    defaults: dict[str, set[str]] = {}
    for name, default in variables:
        defaults.setdefault(name, set()).add(default)
    for name, values in sorted(defaults.items()):
        shown = re.search(rf"^# {name}=(.*)$", example, re.M)
        assert shown is not None, f".env.example: give `# {name}={min(values)}` a line"
        assert values == {shown[1]}, f".env.example says {name}={shown[1]}, docker-compose.yml {values}"


def test_the_demo_task_is_the_demos_preset() -> None:
    preset = preset_for(DEFAULT_MODEL)
    wanted = TaskSpec(
        name="sentiment",
        labels=list(LABELS),
        template=preset.template,
        model=DEFAULT_MODEL,
        layers=preset.layers,
        groups=preset.groups,
        policy=preset.policy(clients=len(AGENTS)),
    )
    assert TaskSpec.model_validate_json((ROOT / "deploy/compose/sentiment.json").read_text(encoding="utf-8")) == wanted
    assert {agent.removeprefix("agent-") for agent in AGENTS} < set(SOURCES)


@pytest.mark.parametrize("path", DOCKERFILES)
def test_an_image_is_pinned_labelled_watched_and_not_run_by_root(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert re.search(r"^ARG (PYTHON|DEBIAN)_IMAGE=[\w./-]+:[\w.-]+$", text, re.M), "pin the base by a tag, in an argument"
    assert f"ARG VERSION={version}" in text
    assert re.findall(r"^USER (\S+)", text, re.M)[-1] == "10001:10001"
    for word in ("STOPSIGNAL ", "HEALTHCHECK --", "org.opencontainers.image.licenses", "org.opencontainers.image.revision"):
        assert word in text, f"{path} has no {word.strip()}"
    assert "readyz" in text + "".join(file.read_text() for file in (ROOT / path).parent.glob("ready"))
    assert "# syntax=" not in text


def test_images_with_torch_share_its_layer() -> None:
    texts = [(ROOT / f"services/{name}/Dockerfile").read_text(encoding="utf-8") for name in ("client_agent", "inference")]
    parts = [text[text.index("FROM scratch AS wheels") : text.index("AS package")] for text in texts]
    assert parts[0] == parts[1], "what comes before the service's own files must be the same lines, or 1 GB is stored twice"


def names_in(registry: CollectorRegistry) -> set[str]:
    """Every series name that a registry can show."""
    endings = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
    names: set[str] = set()
    for metric in registry.collect():
        assert isinstance(metric, Metric)
        names |= {f"{metric.name}{ending}" for ending in endings.get(metric.type, ("",))}
    return names


def test_the_dashboard_names_metrics_of_the_code() -> None:
    dashboard = json.loads((ROOT / "deploy/monitoring/grafana/ifed.json").read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    named = {name for expression in expressions for name in re.findall(r"\b(?:ifed|http)_\w+", expression)}
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "services/inference").glob("*.py"))
    known = {f"ifed_inference_{name}" for name in re.findall(r'metrics\.watch(?:_count)?\(\s*"(\w+)"', code)} | {
        "http_requests_total"
    }
    for service in ("aggregator", "inference"):
        registry = CollectorRegistry()
        promises.metrics_of(service, registry)
        known |= names_in(registry)
    assert named
    assert named - known == set(), "the dashboard names what no service shows"


def test_prometheus_asks_services_where_they_listen() -> None:
    jobs = yaml.safe_load((ROOT / "deploy/monitoring/prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    for job in jobs:
        (target,) = job["dns_sd_configs"]
        assert target["names"] == [job["job_name"]]
        assert target["port"] == int(services()[job["job_name"]]["environment"]["METRICS_PORT"])
        assert networks_of("prometheus") & networks_of(job["job_name"])


def test_metrics_have_a_port_that_no_proxy_leads_to_and_the_description_is_off() -> None:
    for name in ("aggregator", "inference", "inference-gpu"):
        environment = services()[name]["environment"]
        assert environment["DOCS"] == "false"
        ports = {services()[proxy]["environment"]["REPLICAS_PORT"] for proxy in ("proxy", "inference-proxy")}
        assert environment["METRICS_PORT"] not in ports


def test_the_table_of_faults_is_that_of_the_kept_figures() -> None:
    outcomes = report.read(ROOT / "benchmarks/results/compose-faults.json")
    assert report.table(outcomes) in documents.document("docs/ref-compose-faults.md").text
    assert all(outcome.wrong == 0 for outcome in outcomes)
