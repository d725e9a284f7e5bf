"""The demo's federation: enrol four organisations, start their agents, follow the rounds."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import httpx
from rich.live import Live
from rich.progress import Progress

from ifed.cli.console import console, say
from ifed.cli.demo.corpora import LABELS, Organisation
from ifed.cli.demo.display import AgentView, Snapshot, draw, lines
from ifed.cli.demo.measure import Accuracy, Outcome, accuracy
from ifed.cli.demo.presets import Preset
from ifed.cli.demo.stack import ServiceDied, ServiceProcess, Stack
from ifed.clients import AggregatorClient, InferenceClient
from ifed.errors import NothingYet
from ifed.messages.enums import Role, TaskState
from ifed.messages.rounds import TaskInfo
from ifed.messages.tasks import TaskSpec

TASK = "sentiment"
START_SECONDS = 180.0
POLL_SECONDS = 0.5
AGENT_THREADS = "1"


class Federation:
    """The aggregator, the inference service and the agents of one demo."""

    def __init__(
        self, stack: Stack, preset: Preset, organisations: Sequence[Organisation], *, model: str, cache: Path, folder: Path
    ) -> None:
        self._stack, self._preset, self._organisations = stack, preset, organisations
        self._model, self._cache, self._folder = model, cache, folder
        self.admin_token = secrets.token_urlsafe(24)
        self.aggregator_url = self.inference_url = ""
        self._inference: ServiceProcess | None = None
        self._alone: list[str] = []
        self._views: dict[str, AgentView] = {}

    def start(self) -> None:
        """Start the aggregator and the inference service, and wait until the aggregator responds."""
        for file in self._folder.glob("aggregator.db*"):
            file.unlink()
        database = f"sqlite+aiosqlite:///{(self._folder / 'aggregator.db').resolve()}"
        aggregator = self._stack.start(
            "aggregator", "services.aggregator.app", {"DATABASE_URL": database, "ADMIN_TOKEN": self.admin_token}
        )
        self._stack.wait_ready(aggregator, seconds=START_SECONDS)
        self.aggregator_url = aggregator.url
        say(f"  aggregator on {aggregator.url}")

    async def train(self) -> None:
        """Enrol everyone, start inference and the agents, and show the rounds until the task has finished."""
        async with self._admin() as admin:
            reader = (await admin.enrol("inference", Role.READER)).token
            self._inference = self._stack.start(
                "inference",
                "services.inference.app",
                {
                    "AGGREGATOR_URL": self.aggregator_url,
                    "READER_TOKEN": reader,
                    "TASKS": TASK,
                    "OPEN_ACCESS": "true",  # on loopback, and the curl line stays short
                    "MODEL": self._model,
                    "MODEL_CACHE": str(self._cache),
                },
            )
            self.inference_url = self._inference.url
            await admin.create_task(self._spec(TASK, clients=len(self._organisations)))
            await admin.start(TASK)
            agents = {
                organisation.name: self._agent(organisation, TASK, (await admin.enrol(organisation.name)).token)
                for organisation in self._organisations
            }
            say(f"  inference on {self.inference_url}, and an agent for each organisation\n")
            await self._follow(admin, TASK, agents)

    async def train_alone(self) -> None:
        """Let each organisation run the same task alone, in one process each, all at the same time."""
        async with self._admin() as admin:
            for organisation in self._organisations:
                task = f"{TASK}-{organisation.name}"
                await admin.create_task(self._spec(task, clients=1))
                await admin.start(task)
                self._agent(organisation, task, (await admin.enrol(f"{organisation.name}-alone")).token)
                self._alone.append(task)
            await asyncio.gather(*(self._wait_until_finished(admin, task) for task in self._alone))

    async def measure(self) -> tuple[Outcome, dict[str, object]]:
        """Measure the accuracies on the test texts through the inference service, and return all figures."""
        assert self._inference is not None
        await asyncio.to_thread(self._stack.wait_ready, self._inference, seconds=START_SECONDS)
        async with self._admin() as admin, InferenceClient(self.inference_url, timeout=600) as inference:
            task = await admin.task(TASK)
            await self._wait_until_served(inference, task)
            with Progress(console=console, transient=True) as bar:
                base = await self._measure_all(inference, bar, "base model", lambda _: f"{TASK}@base")
                together = await self._measure_all(inference, bar, "the four together", lambda _: TASK)
                alone = (
                    await self._measure_all(inference, bar, "calibrated alone", lambda name: f"{TASK}-{name}")
                    if self._alone
                    else None
                )
            outcome = Outcome(self._organisations, base, together, alone)
            return outcome, outcome.summary(task, await admin.rounds(TASK))

    async def _measure_all(
        self, inference: InferenceClient, bar: Progress, title: str, model: Callable[[str], str]
    ) -> dict[str, Accuracy]:
        step = bar.add_task(
            f"  asking the {title.removeprefix('the ')}", total=sum(len(organisation.test) for organisation in self._organisations)
        )
        return {
            organisation.name: await accuracy(
                inference, model(organisation.name), organisation, answered=lambda count: bar.advance(step, count)
            )
            for organisation in self._organisations
        }

    async def ask(self, text: str) -> str:
        """Return the inference service's response to one text, as JSON."""
        async with InferenceClient(self.inference_url) as inference:
            return (await inference.classify(TASK, text)).model_dump_json()

    def _admin(self) -> AggregatorClient:
        return AggregatorClient(self.aggregator_url, self.admin_token)

    def _spec(self, name: str, *, clients: int) -> TaskSpec:
        preset = self._preset
        return TaskSpec(
            name=name,
            labels=list(LABELS),
            template=preset.template,
            model=self._model,
            layers=preset.layers,
            groups=preset.groups,
            policy=preset.policy(clients=clients),
        )

    def _agent(self, organisation: Organisation, task: str, token: str) -> ServiceProcess:
        settings = {
            "AGGREGATOR_URL": self.aggregator_url,
            "CLIENT_TOKEN": token,
            "TASK": task,
            "DATA_FILE": str(organisation.file),
            "STATE_DIR": str(self._folder / "state" / task),
            "MODEL": self._model,
            "MODEL_CACHE": str(self._cache),
            "MIN_EXAMPLES": "1",  # the texts are public, and --examples may ask for few
            "THREADS": AGENT_THREADS,
        }
        return self._stack.start(
            f"agent-{organisation.name}" if task == TASK else f"agent-alone-{organisation.name}",
            "services.client_agent.app",
            settings,
        )

    async def _follow(self, admin: AggregatorClient, task: str, agents: Mapping[str, ServiceProcess]) -> None:
        """Show the rounds until they are over: a live display on a terminal, otherwise one line per event."""
        before: Snapshot | None = None
        began = time.monotonic()
        with Live(console=console, auto_refresh=False, transient=False) as live:
            while True:
                self._stack.check()
                now = await self._snapshot(admin, task, agents, began)
                if console.is_terminal:
                    live.update(draw(now), refresh=True)
                else:
                    for line in lines(before, now):
                        say(f"  {line}")
                before = now
                if _has_finished(now.task):
                    break
                await asyncio.sleep(POLL_SECONDS)

    async def _snapshot(self, admin: AggregatorClient, task: str, agents: Mapping[str, ServiceProcess], began: float) -> Snapshot:
        async with httpx.AsyncClient(timeout=5, trust_env=False) as http:
            views = await asyncio.gather(*(_view(http, service) for service in agents.values()))
        for name, view in zip(agents, views, strict=True):
            if view is not None:
                self._views[name] = view
        latest = {name: self._views.get(name, AgentView()) for name in agents}
        return Snapshot(await admin.task(task), await admin.rounds(task), latest, began)

    async def _wait_until_finished(self, admin: AggregatorClient, task: str) -> None:
        while True:
            self._stack.check()
            info = await admin.task(task)
            if _has_finished(info):
                served = next((evaluation.accuracy for evaluation in info.evaluations if evaluation.version == info.served), 0.0)
                say(f"  {task.removeprefix(f'{TASK}-')} has finished, {100 * served:.1f} % on its own held-out texts")
                return
            await asyncio.sleep(POLL_SECONDS)

    async def _wait_until_served(self, inference: InferenceClient, task: TaskInfo) -> None:
        """Wait until the inference service serves the version that the aggregator promoted last."""
        for _ in range(60):
            self._stack.check()
            served = {model.id: model.adapter_version for model in (await inference.models()).data}
            if served.get(TASK) == task.served:
                return
            await asyncio.sleep(POLL_SECONDS)
        raise NothingYet(f"inference does not serve version {task.served} of {TASK}; its log is in {self._folder / 'logs'}")


def _has_finished(task: TaskInfo) -> bool:
    """Return whether the task has finished.

    Raises:
        ServiceDied: it failed; the message has the aggregator's reason.
    """
    if task.state is TaskState.FAILED:
        raise ServiceDied(f"the task failed: {task.reason}")
    return task.state is TaskState.FINISHED


async def _view(http: httpx.AsyncClient, service: ServiceProcess) -> AgentView | None:
    """Return the status of an agent, or None while its status page does not respond."""
    try:
        status = (await http.get(f"{service.url}/v1/status")).json()
        return AgentView(**{name: status[name] for name in AgentView.__slots__})
    except (httpx.HTTPError, ValueError, KeyError):
        return None
