"""docker-compose.yml as a project of its own with a small model, controlled by make and docker."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx

from testing.random_models import build_model, build_tokenizer
from testing.servers import free_port
from tests.house.sources import ROOT

PROJECT = "ifed-test"
TASK = "polarity"
ORGANISATIONS = ("tweets", "movie-reviews", "product-reviews")
AGENTS = tuple(f"agent-{name}" for name in ORGANISATIONS)
LABELS = ["negative", "positive"]
WORDS = {"negative": ("bad", "plot", "nothing"), "positive": ("good", "liked", "acting")}
FILLING = ("the", "film", "was", "and", "we", "it", "a", "lot", "because", "of", "mattered", "to", "us")
DEADLINE = 20.0
TIMEOUT_SECONDS = 300.0

POLICY = {
    "rounds": 10_000,
    "clients_expected": 3,
    "quorum": 2,
    "retries": 100,
    "deadline_seconds": DEADLINE,
    "local_steps": 60,
    "batch_size": 8,
    "learning_rate": 0.3,
    "learning_rate_schedule": "constant",
    "serve": "latest",
    "max_holdout": 8,
}


class Failed(AssertionError):
    """A command ended with an error, or a condition was not met in time."""


def run(*command: str, timeout: float = 1800.0, check: bool = True, streams: int = subprocess.PIPE) -> str:
    """Run a command and return its output.

    Of the environment only what locates the engine and the package index is passed on.
    """
    names = (
        "PATH",
        "HOME",
        "DOCKER_HOST",
        "DOCKER_CONFIG",
        "DOCKER_CONTEXT",
        "TORCH_WHEELS",
        "PIP_INDEX_URL",
        "PIP_EXTRA_INDEX_URL",
    )
    environment = {name: os.environ[name] for name in names if name in os.environ}
    completed = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=streams, timeout=timeout, check=False
    )
    if check and completed.returncode:
        raise Failed(
            f"{' '.join(command)} ended with {completed.returncode}:\n{(completed.stdout + (completed.stderr or b'')).decode(errors='replace')[-3000:]}"
        )
    return completed.stdout.decode(errors="replace")


class Stack:
    """The whole system, started by `make up` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env_file, self.secrets = folder / "env", folder / "secrets"
        self.model = folder / "models" / "tiny"
        self.aggregator_port, self.inference_port = free_port(), free_port()
        self.aggregator_url = f"http://127.0.0.1:{self.aggregator_port}"
        self.inference_url = f"http://127.0.0.1:{self.inference_port}"

    def write(self) -> None:
        """Write the model, the texts, the task and the variables, readable for the users of the containers."""
        self.model.mkdir(parents=True)
        build_model("llama").save_pretrained(self.model)
        build_tokenizer().save_pretrained(self.model)
        for name in ORGANISATIONS:
            (self.folder / name).mkdir()
            (self.folder / name / "texts.jsonl").write_text(_texts(name))
        task = {
            "name": TASK,
            "labels": LABELS,
            "template": "Review: {text}\nSentiment:",
            "model": "tiny",
            "groups": 4,
            "policy": POLICY,
        }
        (self.folder / "task.json").write_text(json.dumps(task))
        variables = {
            "COMPOSE_PROJECT_NAME": PROJECT,
            "COMPOSE_PROFILES": "demo",
            "SECRETS": self.secrets,
            "MODELS": self.model.parent,
            "MODEL": "/models/tiny",
            "DTYPE": "float32",
            "TASK": TASK,
            "MAX_ROUNDS": POLICY["rounds"],
            "STAY": "true",  # as `make up` and `make restore` set it; another value would recreate the agents without their logs
            "TASK_FILE": self.folder / "task.json",
            "POSTGRES_IMAGE": _postgres_image(),
            "AGGREGATOR_PORT": self.aggregator_port,
            "INFERENCE_PORT": self.inference_port,
            "AGGREGATOR_TLS_PORT": free_port(),
            "INFERENCE_TLS_PORT": free_port(),
            **{f"{name.upper().replace('-', '_')}_DATA": self.folder / name for name in ORGANISATIONS},
        }
        self.env_file.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
        for path in self.folder.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)

    def make(self, target: str, *words: str) -> str:
        return run("make", target, f"SECRETS={self.secrets}", f"COMPOSE=docker compose --env-file {self.env_file}", *words)

    def compose(self, *words: str) -> str:
        return run("docker", "compose", "--env-file", str(self.env_file), *words)

    def set_variables(self, **variables: object) -> None:
        """Set further variables, which the next `compose` or `make` reads."""
        with self.env_file.open("a") as file:
            file.writelines(f"{name}={value}\n" for name, value in variables.items())

    def containers(self, service: str) -> list[str]:
        """Return the identifiers of a service's running containers, the first replica first."""
        return self.compose("ps", "--quiet", service).split()

    def address(self, container: str, network: str) -> str:
        """Return a container's address on one of the project's networks."""
        networks = json.loads(run("docker", "inspect", container))[0]["NetworkSettings"]["Networks"]
        return str(networks[f"{PROJECT}_{network}"]["IPAddress"])

    def python(self, container: str, program: str, *words: str) -> str:
        """Run a Python program inside a container and return its output."""
        return run("docker", "exec", container, "python", "-c", program, *words)

    def crash(self, container: str) -> None:
        """Kill every process of a container but its init, as a crash does; the restart policy starts it again."""
        run("docker", "exec", container, "sh", "-c", "kill -9 -1", check=False)

    def restarts(self, container: str) -> int:
        return int(json.loads(run("docker", "inspect", container))[0]["RestartCount"])

    def logged(self, service: str) -> list[dict[str, object]]:
        """Return the JSON lines of a service's log since its containers were created."""
        containers = self.compose("ps", "--all", "--quiet", service).split()
        lines = [
            line for container in containers for line in run("docker", "logs", container, streams=subprocess.STDOUT).splitlines()
        ]
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def secret(self, name: str) -> str:
        return (self.secrets / name).read_text().strip()

    def remove(self) -> None:
        """Remove the containers, networks and volumes of the project."""
        self.make("down", "ARGS=--volumes --remove-orphans --timeout 1")


def until(what: str, condition: Callable[[], object], *, seconds: float = TIMEOUT_SECONDS) -> float:
    """Wait until a condition is true, and return the seconds it took; a failed HTTP request counts as false."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        try:
            if condition():
                return time.monotonic() - began
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise Failed(f"not within {seconds:.0f} s: {what}")


def _texts(seed: str) -> str:
    generator = random.Random(seed)
    return "".join(json.dumps({"text": text_of(generator, LABELS[n % 2]), "label": LABELS[n % 2]}) + "\n" for n in range(60))


def text_of(generator: random.Random, label: str) -> str:
    """Return a text of a few words, some of which indicate its label."""
    words: Sequence[str] = [*generator.choices(FILLING, k=6), *generator.choices(WORDS[label], k=3)]
    return " ".join(generator.sample(words, len(words)))


def _postgres_image() -> str:
    """Return postgres:16, or an image built on it when its pg_dump is of another version than its server."""
    output = run("docker", "run", "--rm", "--entrypoint", "sh", "postgres:16", "-c", "postgres --version; pg_dump --version")
    server, tool = [line.split(")")[1].split(".")[0].strip() for line in output.splitlines() if "(PostgreSQL)" in line]
    if server == tool:
        return "postgres:16"
    run(
        "docker",
        "build",
        "--quiet",
        "--tag",
        "ifed-test/postgres:16",
        "--file",
        str(ROOT / "tests/compose/postgres.Dockerfile"),
        str(ROOT / "tests/compose"),
    )
    return "ifed-test/postgres:16"


def engine_answers() -> bool:
    """Whether a Docker Engine with compose is available."""
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "compose", "ls", "--quiet"], capture_output=True, check=False).returncode == 0
