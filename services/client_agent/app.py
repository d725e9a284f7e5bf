"""Build the agent and run it: the loop, the status page, the exit code."""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import cache, partial
from typing import TYPE_CHECKING, NoReturn

import structlog
import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Gauge

from ifed import __version__
from ifed.clients import AggregatorClient
from ifed.errors import BadData, IFedError, TooFewExamples
from ifed.messages.rounds import TaskBrief
from ifed.server.logs import configure
from ifed.server.startup import listen_or_exit, settings_or_exit, warn_of_readable_files
from ifed.server.web import mount
from services.client_agent.agent import Agent
from services.client_agent.demonstrations import Columns, Split, check_data_file, read_data_file, split_holdout
from services.client_agent.endpoints import router
from services.client_agent.limits import check_model_name
from services.client_agent.participation import Participant
from services.client_agent.settings import Settings
from services.client_agent.state import AgentState, DataFileWatcher, ReleasedTexts, hash_of
from services.client_agent.status import Activity, ExitCode, Status

if TYPE_CHECKING:
    from services.client_agent.model import LocalModel

log = structlog.get_logger(__name__)
SERVICE = "the client agent"


def create_app(settings: Settings, *, on_end: Callable[[ExitCode], None] | None = None) -> FastAPI:
    """Return the agent's application; the agent's loop runs as long as the application does.

    Args:
        settings: the agent's settings.
        on_end: called with the exit code when the loop has ended by itself.
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


async def _run(settings: Settings, status: Status, on_end: Callable[[ExitCode], None] | None) -> None:
    code = ExitCode.DONE
    try:
        await take_part(settings, status)
    except IFedError as refusal:
        log.error("cannot take part", error=type(refusal).__name__, detail=refusal.detail)
        status.begin(Activity.STOPPED, note=f"{type(refusal).__name__}: {refusal.detail}")
        code = ExitCode.DATA if isinstance(refusal, BadData) else ExitCode.REFUSED
    except Exception as reason:  # noqa: BLE001  # the process must end and not serve its status page without a loop
        # The message of the exception may quote private text, so only its type and place are shown.
        if isinstance(reason, OSError) and reason.errno is not None:
            detail = f"{reason.strerror}: {reason.filename}; STATE_DIR and MODEL_CACHE name the agent's folders"
            code = ExitCode.SETTINGS
        else:
            detail = f"unexpected error ({type(reason).__name__}); the log says where"
            code = ExitCode.REFUSED
        log.error("cannot take part", error=type(reason).__name__, detail=detail, where=_places(reason))
        status.begin(Activity.STOPPED, note=detail)
    if on_end is not None:
        on_end(code)


def _places(reason: Exception) -> list[str]:
    """Return file, line and function of the calls that led to an exception, the outermost first."""
    calls = traceback.extract_tb(reason.__traceback__)
    return [f"{call.filename}:{call.lineno} {call.name}" for call in calls]


async def take_part(settings: Settings, status: Status) -> None:
    """Take part in the task until it is done.

    Raises:
        IFedError: the agent cannot take part; the message is for its operator.
    """
    async with _aggregator(settings) as aggregator:
        watcher = DataFileWatcher(settings.data_file)
        limits = settings.limits()
        models: dict[str, LocalModel] = {}

        @cache
        def state_of(client: str) -> AgentState:
            return AgentState(settings.state_dir, task=settings.task, client=client)

        async def prepare(task: TaskBrief, client: str) -> Participant:
            state, signature = state_of(client), watcher.signature()
            # The data is read first: an operator learns of a bad row before a model is downloaded.
            released = ReleasedTexts(
                settings.state_dir, task=settings.task, data_file=settings.data_file, fewest=settings.min_examples
            )
            data = await asyncio.to_thread(_read, settings, status, task, state, released)
            model = settings.model or check_model_name(task.model)
            if model not in models:
                status.begin(Activity.LOADING)
                models[model] = await asyncio.to_thread(_load, settings, model)
            return Participant(aggregator, models[model], data, state, released, status, data_file=signature)

        agent = Agent(
            aggregator,
            prepare,
            status,
            task=settings.task,
            limits=limits,
            wait_for_task=settings.wait_for_task,
            wait=settings.wait_seconds,
            stay=settings.stay,
            has_new_data=lambda client: watcher.has_new_data(state_of(client)),
        )
        await agent.run()


def _aggregator(settings: Settings) -> AggregatorClient:
    """Return a client of the aggregator.

    Raises:
        Malformed: the token, the CA file or a proxy cannot be used.
        OSError: the token's file cannot be read.
    """
    proxy = None if settings.proxy_url is None else settings.proxy_url.get_secret_value()
    return AggregatorClient(
        str(settings.aggregator_url),
        settings.token(),
        ca_file=settings.ca_file,
        proxy=proxy,
        max_bytes=settings.max_answer_bytes,
    )


async def withdraw(settings: Settings) -> None:
    """Withdraw this organisation from the task permanently; an agent that is running ends by itself.

    Raises:
        IFedError: the aggregator refused.
    """
    async with _aggregator(settings) as aggregator:
        withdrawal = await aggregator.withdraw(settings.task)
    log.info("withdrawn", task=withdrawal.task, client=withdrawal.client, at=withdrawal.withdrawn_at.isoformat())


def _load(settings: Settings, model: str) -> LocalModel:
    from services.client_agent.model import LocalModel  # imports torch, which takes seconds

    return LocalModel.load(
        model,
        cache=settings.model_cache,
        device=settings.device,
        dtype=settings.dtype,
        threads=settings.threads,
        int8=settings.int8,
        token_budget=settings.token_budget,
        announce=lambda step: log.info("model", step=step),
    )


def _read(settings: Settings, status: Status, task: TaskBrief, state: AgentState, released: ReleasedTexts) -> Split:
    status.begin(Activity.READING)
    sent = state.sent_hashes
    examples = read_data_file(settings.data_file, task.labels, _columns(settings))
    data = split_holdout(
        examples,
        holdout=task.policy.holdout,
        max_holdout=task.policy.max_holdout,
        learned=lambda example: hash_of(example) in sent or released.holds(example),
    )
    if len(data.training) < settings.min_examples:
        raise TooFewExamples(
            f"{settings.data_file.name} leaves {len(data.training)} training examples, fewer than MIN_EXAMPLES={settings.min_examples}; a context "
            "vector of few texts shows what they say. Bring more, or lower MIN_EXAMPLES if you accept that"
        )
    status.training, status.holdout = len(data.training), len(data.holdout)
    return data


def _columns(settings: Settings) -> Columns:
    return Columns(settings.text_column, settings.label_column, settings.label_map, settings.data_encoding)


def main() -> None:
    """Run `python -m services.client_agent.app`, which takes part, or with the argument `withdraw` withdraws."""
    settings = settings_or_exit(Settings, service=SERVICE, secrets=_aggregator)
    configure(settings.log_level)
    warn_of_readable_files(settings, "client_token_file")
    if sys.argv[1:] == ["withdraw"]:
        try:
            asyncio.run(withdraw(settings))
        except IFedError as refusal:
            _end(ExitCode.REFUSED, f"{type(refusal).__name__}: {refusal.detail}")
        sys.exit(ExitCode.DONE)
    if sys.argv[1:]:
        _end(ExitCode.SETTINGS, f"unknown command {sys.argv[1]!r}; use `withdraw`, or no command to take part")
    try:
        check_data_file(settings.data_file, _columns(settings))
    except BadData as refusal:
        _end(ExitCode.DATA, f"BadData: {refusal.detail}")
    listener = listen_or_exit(settings.host, settings.port, service=SERVICE)
    exit_codes: list[ExitCode] = []

    def end(code: ExitCode) -> None:
        exit_codes.append(code)
        server.should_exit = True

    app = create_app(settings, on_end=end)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    code = exit_codes[0] if exit_codes else ExitCode.DONE
    if code is not ExitCode.DONE:
        _end(code, app.state.status.note)
    sys.exit(code)


def _end(code: ExitCode, reason: str) -> NoReturn:
    """Exit with the reason as the last line, after all that uvicorn logs about its end."""
    sys.stderr.write(f"{SERVICE}: {' '.join(reason.split())}\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
