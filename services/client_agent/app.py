"""Build the agent and run it: the loop, the status page, the exit code."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import cache, partial
from typing import TYPE_CHECKING

import structlog
import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Gauge

from ifed import __version__
from ifed.clients import AggregatorClient
from ifed.errors import IFedError
from ifed.messages.rounds import TaskBrief
from ifed.server.logs import configure
from ifed.server.startup import settings_or_exit, warn_of_readable_files
from ifed.server.web import mount
from services.client_agent.agent import Agent
from services.client_agent.demonstrations import Columns, Split, read_data_file, split_holdout
from services.client_agent.endpoints import router
from services.client_agent.participation import Participant
from services.client_agent.settings import Settings
from services.client_agent.state import AgentState, DataFileWatcher, hash_of
from services.client_agent.status import Activity, Status

if TYPE_CHECKING:
    from services.client_agent.model import LocalModel

log = structlog.get_logger(__name__)


def create_app(settings: Settings, *, on_end: Callable[[int], None] | None = None) -> FastAPI:
    """Return the agent's application; the agent's loop runs as long as the application does.

    Args:
        settings: the agent's settings.
        on_end: called with the exit code, 0 or 1, when the loop has ended by itself.
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
        description="The activity of this organisation's agent.",
        lifespan=lifespan,
    )
    app.state.status, app.state.task = status, settings.task
    registry = CollectorRegistry()
    for name, description in {
        "contributions": "contributions the aggregator has received",
        "bytes_up": "bytes sent",
        "bytes_down": "bytes received",
    }.items():
        Gauge(f"ifed_agent_{name}", description, registry=registry).set_function(partial(getattr, status, name))

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
        log.error("cannot take part", error=type(refusal).__name__, detail=refusal.detail)
        status.begin(Activity.STOPPED, note=refusal.detail)
        code = 1
    except Exception:  # the process must end and not serve its status page without a loop
        log.exception("unexpected error")
        status.begin(Activity.STOPPED, note="unexpected error; see the agent's log")
        code = 1
    if on_end is not None:
        on_end(code)


async def take_part(settings: Settings, status: Status) -> None:
    """Take part in the task until it is done.

    Raises:
        IFedError: the agent cannot take part; the message is for its operator.
    """
    async with AggregatorClient(str(settings.aggregator_url), settings.token()) as aggregator:
        watcher = DataFileWatcher(settings.data_file)
        models: dict[str, LocalModel] = {}

        @cache
        def state_of(client: str) -> AgentState:
            return AgentState(settings.state_dir, task=settings.task, client=client)

        async def prepare(task: TaskBrief, client: str) -> Participant:
            state, signature = state_of(client), watcher.signature()
            # The data is read first: an operator learns of a bad row before a model is downloaded.
            data = await asyncio.to_thread(_read, settings, status, task, state)
            if task.model not in models:
                status.begin(Activity.LOADING)
                models[task.model] = await asyncio.to_thread(_load, settings, task)
            return Participant(aggregator, models[task.model], data, state, status, data_file=signature)

        agent = Agent(
            aggregator,
            prepare,
            status,
            task=settings.task,
            wait=settings.wait_seconds,
            stay=settings.stay,
            has_new_data=lambda client: watcher.has_new_data(state_of(client)),
        )
        await agent.run()


async def withdraw(settings: Settings) -> None:
    """Withdraw this organisation from the task permanently; an agent that is running ends by itself.

    Raises:
        IFedError: the aggregator refused.
    """
    async with AggregatorClient(str(settings.aggregator_url), settings.token()) as aggregator:
        withdrawal = await aggregator.withdraw(settings.task)
    log.info("withdrawn", task=withdrawal.task, client=withdrawal.client, at=withdrawal.withdrawn_at.isoformat())


async def _withdraw_or_log(settings: Settings) -> int:
    """Withdraw, and return the exit code."""
    try:
        await withdraw(settings)
    except IFedError as refusal:
        log.error("cannot withdraw", error=type(refusal).__name__, detail=refusal.detail)
        return 1
    return 0


def _load(settings: Settings, task: TaskBrief) -> LocalModel:
    from services.client_agent.model import LocalModel  # imports torch, which takes seconds

    return LocalModel.load(
        settings.model or task.model,
        cache=settings.model_cache,
        device=settings.device,
        dtype=settings.dtype,
        threads=settings.threads,
        int8=settings.int8,
        token_budget=settings.token_budget,
        announce=lambda step: log.info("model", step=step),
    )


def _read(settings: Settings, status: Status, task: TaskBrief, state: AgentState) -> Split:
    status.begin(Activity.READING)
    columns, sent = (
        Columns(settings.text_column, settings.label_column, settings.label_map, settings.data_encoding),
        state.sent_hashes,
    )
    examples = read_data_file(settings.data_file, task.labels, columns)
    data = split_holdout(
        examples,
        holdout=task.policy.holdout,
        max_holdout=task.policy.max_holdout,
        learned=lambda example: hash_of(example) in sent,
    )
    status.training, status.holdout = len(data.training), len(data.holdout)
    return data


def main() -> None:
    """Run `python -m services.client_agent.app`, which takes part, or with the argument `withdraw` withdraws."""
    settings = settings_or_exit(Settings, service="the client agent", secrets=Settings.token)
    configure(settings.log_level)
    warn_of_readable_files(settings, "client_token_file")
    if sys.argv[1:] == ["withdraw"]:
        sys.exit(asyncio.run(_withdraw_or_log(settings)))
    if sys.argv[1:]:
        sys.exit(f"unknown command {sys.argv[1]!r}; use `withdraw`, or no command to take part")
    exit_codes: list[int] = []

    def end(code: int) -> None:
        exit_codes.append(code)
        server.should_exit = True

    app = create_app(settings, on_end=end)
    server = uvicorn.Server(uvicorn.Config(app, host=settings.host, port=settings.port, log_config=None, access_log=False))
    with suppress(KeyboardInterrupt):
        server.run()
    sys.exit(exit_codes[0] if exit_codes else 0)


if __name__ == "__main__":
    main()
