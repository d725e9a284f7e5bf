"""An aggregator, agents and an inference service as processes of their own on loopback."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

from ifed.cli.demo.stack import ServiceProcess, Stack
from ifed.clients import AggregatorClient
from ifed.messages.enums import Role, TaskState
from ifed.messages.rounds import TaskInfo
from ifed.messages.tasks import Policy, TaskSpec

ADMIN_TOKEN = "an-admin-token-for-tests"
TASK, LABELS = "polarity", ["no", "yes"]
ORGANISATIONS = ("north", "south")


def private_file(folder: Path, organisation: str) -> Path:
    """Write and return a data file of 24 texts."""
    rows = [
        {"text": f"{organisation} says {'good' if n % 2 else 'bad'} things number {n}", "label": LABELS[n % 2]} for n in range(24)
    ]
    file = folder / f"{organisation}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


class Federation:
    """The services of one task, started one by one.

    Args:
        storage: settings of the aggregator; a SQLite file when empty.
    """

    def __init__(self, stack: Stack, folder: Path, model: Path, storage: Mapping[str, str] | None = None) -> None:
        self.stack, self.folder, self.model = stack, folder, model
        self._settings = {"ADMIN_TOKEN": ADMIN_TOKEN, "DATABASE_URL": f"sqlite+aiosqlite:///{folder / 'ifed.db'}"}
        self._settings |= dict(storage or {})
        self.tokens: dict[str, str] = {}
        self.aggregator = self._start_aggregator({})

    def _start_aggregator(self, settings: Mapping[str, str]) -> ServiceProcess:
        service = self.stack.start("aggregator", "services.aggregator.app", self._settings | dict(settings))
        if "PORT" in settings:
            service.url = f"http://127.0.0.1:{settings['PORT']}"
        self.stack.wait_ready(service, seconds=60)
        return service

    def kill(self, service: ServiceProcess) -> None:
        """Kill a service with SIGKILL."""
        service.process.send_signal(signal.SIGKILL)
        service.process.wait()
        self.stack.forget(service)

    def restart_aggregator(self) -> None:
        """Start a killed aggregator again at the same address."""
        self.aggregator = self._start_aggregator({"PORT": self.aggregator.url.rsplit(":", 1)[1]})

    def admin(self) -> AggregatorClient:
        return AggregatorClient(self.aggregator.url, ADMIN_TOKEN)

    async def enrol(self) -> None:
        """Enrol the organisations and a reader."""
        async with self.admin() as admin:
            self.tokens = {name: (await admin.enrol(name)).token for name in ORGANISATIONS}
            self.tokens["reader"] = (await admin.enrol("reader", Role.READER)).token

    def start_agent(self, organisation: str) -> ServiceProcess:
        settings = {
            "AGGREGATOR_URL": self.aggregator.url,
            "CLIENT_TOKEN": self.tokens[organisation],
            "TASK": TASK,
            "DATA_FILE": str(private_file(self.folder, organisation)),
            "STATE_DIR": str(self.folder / "state"),
            "MODEL": str(self.model),
            "MIN_EXAMPLES": "16",  # of 24 texts, of which some are held out
            "THREADS": "1",
            "WAIT_SECONDS": "2",
        }
        return self.stack.start(f"agent-{organisation}", "services.client_agent.app", settings)

    def start_inference(self) -> ServiceProcess:
        settings = {
            "AGGREGATOR_URL": self.aggregator.url,
            "READER_TOKEN": self.tokens["reader"],
            "MODEL": str(self.model),
            "TASKS": TASK,
        }
        return self.stack.start("inference", "services.inference.app", settings)

    async def start_task(self, **policy: object) -> None:
        """Create the task, read by its label words, with two calibration rounds unless `policy` says otherwise, and start it."""
        defaults = {"clients_expected": 2, "rounds": 2, "local_steps": 3, "batch_size": 4, "max_holdout": 4}
        spec = TaskSpec(
            name=TASK,
            labels=LABELS,
            template="{text}\nGood:",
            model=str(self.model),
            groups=4,
            head="words",
            injection="all_tokens",
            policy=Policy.model_validate(defaults | policy),
        )
        async with self.admin() as admin:
            await admin.create_task(spec)
            await admin.start(TASK)

    async def wait_until(self, condition: Callable[[TaskInfo], bool]) -> TaskInfo:
        """Wait until a condition of the task holds, and return the task."""
        async with self.admin() as admin, asyncio.timeout(120):
            while True:
                task = await admin.task(TASK)
                assert task.state is not TaskState.FAILED, task.reason
                if condition(task):
                    return task
                await asyncio.sleep(0.1)

    async def wait_until_finished(self) -> TaskInfo:
        return await self.wait_until(lambda task: task.state is TaskState.FINISHED)
