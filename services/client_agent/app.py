"""Joins the agent's parts and runs them: the loop, the status page, the exit code. The only file here that builds things."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import structlog
import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Gauge

from ifed import __version__
from ifed.clients import AggregatorClient
from ifed.errors import IFedError
from ifed.messages.rounds import TaskBrief
from ifed.server.logs import configure
from ifed.server.startup import settings_or_exit
from ifed.server.web import mount
from services.client_agent.agent import Agent
from services.client_agent.demonstrations import Columns, Split, read, split
from services.client_agent.endpoints import router
from services.client_agent.participation import Model, Participation
from services.client_agent.settings import Settings
from services.client_agent.state import DataFileWatcher, ErrorFeedback, Memory, Outbox, hash_of
from services.client_agent.status import Activity, Status

log = structlog.get_logger(__name__)


def create_app(settings: Settings, *, on_end: Callable[[int], None] | None = None) -> FastAPI:
    """The agent: its loop runs while the application does, its status page says what it is doing.

    Args:
        settings: see `Settings`.
        on_end: called with the exit code, 0 or 1, when the loop has come to its end by itself.
    """
    status = Status()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.create_task(_run(settings, status, on_end))
        yield
        status.stop()
        loop.cancel()
        with suppress(asyncio.CancelledError):
            await loop

    app = FastAPI(
        title="IFed-ICL client agent",
        version=__version__,
        description="What this organisation's agent is doing.",
        lifespan=lifespan,
    )
    app.state.status, app.state.task = status, settings.task
    registry = CollectorRegistry()
    for name, words in {"contributions": "contributions received", "bytes_up": "bytes sent", "bytes_down": "bytes read"}.items():
        Gauge(f"ifed_agent_{name}", words, registry=registry).set_function(partial(getattr, status, name))

    async def readiness() -> dict[str, str]:
        return {"agent": status.note or "stopped" if status.activity is Activity.STOPPED else "ok"}

    mount(app, readiness=readiness, registry=registry)
    app.include_router(router)
    return app


async def _run(settings: Settings, status: Status, on_end: Callable[[int], None] | None) -> None:
    code = 0
    try:
        await take_part(settings, status)
    except IFedError as refusal:
        log.error("cannot take part", error=type(refusal).__name__, detail=refusal.detail)  # a sentence for the operator
        status.begin(Activity.STOPPED, note=refusal.detail)
        code = 1
    except Exception:  # whatever it was, the process must say so and end, not sit there with a dead loop
        log.exception("the agent broke")
        status.begin(Activity.STOPPED, note="the agent broke; its log says where")
        code = 1
    if on_end is not None:
        on_end(code)


async def take_part(settings: Settings, status: Status) -> None:
    """Run the loop until the task is done.

    Raises:
        IFedError: the agent cannot take part; the message is for its operator.
    """
    async with AggregatorClient(str(settings.aggregator_url), settings.token()) as aggregator:
        growth = DataFileWatcher(settings.data_file, settings.state_dir, task=settings.task)
        loaded: dict[str, Model] = {}

        async def prepare(task: TaskBrief, client: str) -> Participation:
            memory, file = growth.memory(client), growth.state()
            data = await asyncio.to_thread(_read, settings, status, task, memory)  # a bad row should not wait for a download
            if task.model not in loaded:
                status.begin(Activity.LOADING)
                loaded[task.model] = await asyncio.to_thread(_load, settings, task)
            outbox = Outbox(settings.state_dir, task=task.name)
            feedback = ErrorFeedback(settings.state_dir, task=task.name, client=client)
            return Participation(aggregator, loaded[task.model], data, outbox, status, memory, feedback, file=file)

        agent = Agent(
            aggregator,
            prepare,
            status,
            task=settings.task,
            wait=settings.wait_seconds,
            stay=settings.stay,
            grown=growth.noticed,
        )
        await agent.run()


async def _withdrawn(settings: Settings) -> int:
    try:
        await withdraw(settings)
    except IFedError as refusal:
        log.error("cannot withdraw", error=type(refusal).__name__, detail=refusal.detail)
        return 1
    return 0


async def withdraw(settings: Settings) -> None:
    """Take this organisation out of the task for good; an agent that runs ends by itself."""
    async with AggregatorClient(str(settings.aggregator_url), settings.token()) as aggregator:
        gone = await aggregator.withdraw(settings.task)
    log.info("withdrawn", task=gone.task, client=gone.client, at=gone.withdrawn_at.isoformat())


def _load(settings: Settings, task: TaskBrief) -> Model:
    from services.client_agent.model import LocalModel  # torch takes seconds; a bad setting or row is told before

    return LocalModel.load(
        settings.model or task.model,
        cache=settings.model_cache,
        device=settings.device,
        dtype=settings.dtype,
        threads=settings.threads,
        int8=settings.int8,
        token_budget=settings.token_budget,
        announce=lambda words: log.info("model", step=words),
    )


def _read(settings: Settings, status: Status, task: TaskBrief, memory: Memory) -> Split:
    status.begin(Activity.READING)
    columns, known = Columns(settings.text_column, settings.label_column, settings.label_map), memory.known
    examples = read(settings.data_file, task.labels, columns)
    data = split(
        examples,
        holdout=task.policy.holdout,
        max_holdout=task.policy.max_holdout,
        learned=lambda example: hash_of(example) in known,
    )
    status.training, status.holdout = len(data.training), len(data.holdout)
    return data


def main() -> None:
    """Entry point of `python -m services.client_agent.app`, and of the same with the word `withdraw`."""
    settings = settings_or_exit(Settings, service="the client agent", secrets=Settings.token)
    configure(settings.log_level)
    if sys.argv[1:] == ["withdraw"]:
        sys.exit(asyncio.run(_withdrawn(settings)))
    if sys.argv[1:]:
        sys.exit(f"{sys.argv[1]!r} is no command of the agent; it takes `withdraw`, or nothing to take part")
    outcome: list[int] = []

    def end(code: int) -> None:
        outcome.append(code)
        server.should_exit = True

    app = create_app(settings, on_end=end)
    server = uvicorn.Server(uvicorn.Config(app, host=settings.host, port=settings.port, log_config=None, access_log=False))
    with suppress(KeyboardInterrupt):
        server.run()
    sys.exit(outcome[0] if outcome else 0)


if __name__ == "__main__":
    main()
