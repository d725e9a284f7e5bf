"""A client agent reaches the aggregator's proxy and nothing else; each attempt is also made from where it succeeds."""

from __future__ import annotations

import json
import ssl
import subprocess
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.compose.stack import AGENTS, ORGANISATIONS, PROJECT, Stack, run, until

CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3); print('reached')"
LISTEN = "import socket, sys; s = socket.create_server(('0.0.0.0', int(sys.argv[1])))\nwhile True: s.accept()[0].close()"
LISTENING = 9999
FETCH = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-m', 'pip', 'download', '--no-deps', '--quiet', '--retries', '0', '--timeout', '8', '--dest', '/tmp/x', 'idna']).returncode)"
TARGETS = {"postgres": ("data", 5432), "redis": ("data", 6379), "aggregator": ("control", 8080), "inference": ("serving", 8081)}


def reaches(stack: Stack, container: str, host: str, port: int) -> bool:
    completed = subprocess.run(
        ["docker", "exec", container, "python", "-c", CONNECT, host, str(port)], capture_output=True, check=False
    )
    return completed.stdout.strip() == b"reached"


@pytest.mark.parametrize("agent", AGENTS)
def test_an_agent_reaches_the_aggregators_proxy(stack: Stack, agent: str) -> None:
    assert reaches(stack, stack.containers(agent)[0], "proxy", 8080)


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("target", TARGETS)
def test_an_agent_reaches_no_other_service_by_name_or_address(stack: Stack, agent: str, target: str) -> None:
    network, port = TARGETS[target]
    address = stack.address(stack.containers(target)[0], network)
    container = stack.containers(agent)[0]
    assert not reaches(stack, container, target, port)
    assert not reaches(stack, container, address, port)


def test_the_same_attempts_succeed_from_where_they_are_allowed(stack: Stack) -> None:
    aggregator, inference = stack.containers("aggregator")[0], stack.containers("inference")[0]
    for target in ("postgres", "redis"):
        assert reaches(stack, aggregator, stack.address(stack.containers(target)[0], "data"), TARGETS[target][1])
    assert reaches(stack, inference, "proxy", 8080)
    assert reaches(stack, inference, stack.address(inference, "serving"), 8081)


def test_agents_do_not_reach_each_other(stack: Stack) -> None:
    for agent in AGENTS:
        listening = stack.containers(agent)[0]
        address = stack.address(listening, agent.removeprefix("agent-"))
        run("docker", "exec", "--detach", listening, "python", "-c", LISTEN, str(LISTENING))
        until(f"{agent} listens at its own address", partial(reaches, stack, listening, address, LISTENING))
        for other in AGENTS:
            if other != agent:
                assert not reaches(stack, stack.containers(other)[0], address, LISTENING), f"{other} reaches {agent}"


@pytest.mark.parametrize("network", [*ORGANISATIONS, "outbound"])
def test_only_the_network_of_the_downloading_jobs_reaches_the_internet(stack: Stack, network: str) -> None:
    image = "ifed-icl/fetching:0.1.0"
    command = ["docker", "run", "--rm", "--network", f"{PROJECT}_{network}", image, "python", "-c", FETCH]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (completed.returncode == 0) is (network == "outbound"), completed.stdout + completed.stderr


@pytest.mark.parametrize("service", ["aggregator", "inference", "proxy", "inference-proxy", *AGENTS])
def test_a_container_is_not_root_and_writes_only_to_its_folders(stack: Stack, service: str) -> None:
    container = stack.containers(service)[0]
    output = run("docker", "exec", container, "sh", "-c", "id -u; (touch /venv/x || touch /etc/x) 2>&1; grep CapEff /proc/1/status")
    assert output.splitlines()[0] == "10001"
    assert "Read-only file system" in output
    assert output.split()[-1] == "0" * 16
    (details,) = json.loads(run("docker", "inspect", container))
    assert details["HostConfig"]["SecurityOpt"] == ["no-new-privileges:true"]
    assert details["HostConfig"]["Memory"] > 0


def test_the_aggregators_image_has_no_torch(stack: Stack) -> None:
    program = "import importlib.util as u; print([name for name in ('torch', 'transformers', 'pip') if u.find_spec(name)])"
    assert stack.python(stack.containers("aggregator")[0], program).strip() == "[]"
    sizes = [
        int(run("docker", "image", "inspect", "--format", "{{.Size}}", image))
        for image in ("ifed-icl/aggregator:0.1.0", "python:3.11-slim")
    ]
    assert sizes[0] - sizes[1] < 350_000_000


def test_no_secret_is_in_a_containers_configuration_or_log(stack: Stack) -> None:
    secrets = [stack.secret(path.name) for path in stack.secrets.iterdir() if path.is_file()]
    for container in stack.compose("ps", "--all", "--quiet").split():
        output = run("docker", "inspect", container) + run("docker", "logs", container, streams=subprocess.STDOUT)
        assert not [secret for secret in secrets if secret in output], f"a secret is in the configuration or log of {container}"


def test_the_proxy_serves_https_with_the_configured_certificate(stack: Stack, tmp_path: Path) -> None:
    combined = stack.secrets / "tls" / "localhost.pem"
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    run(
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        *subject,
        "-keyout",
        str(key),
        "-out",
        str(certificate),
    )
    combined.write_text(certificate.read_text() + key.read_text())
    combined.chmod(0o644)
    stack.set_variables(PROXY_TLS="on")
    stack.compose("up", "--detach", "--wait", "proxy")
    port = next(line for line in stack.env_file.read_text().splitlines() if line.startswith("AGGREGATOR_TLS_PORT=")).split("=")[1]
    trusted = ssl.create_default_context(cafile=str(certificate))
    with httpx.Client(verify=trusted, timeout=10) as client:
        until("HTTPS answers", lambda: client.get(f"https://127.0.0.1:{port}/readyz").status_code == httpx.codes.OK)
        assert "Strict-Transport-Security" in client.get(f"https://127.0.0.1:{port}/readyz").headers
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"), httpx.Client(timeout=10) as stranger:
        stranger.get(f"https://127.0.0.1:{port}/readyz")
