"""Joins the inference service's parts and runs them. The only file here that builds things."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING

import structlog
import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from ifed import __version__
from ifed.clients import AggregatorClient
from ifed.clients.transport import check_token
from ifed.errors import IFedError
from ifed.server.logs import configure
from ifed.server.startup import settings_or_exit
from ifed.server.web import describe, mount
from services.inference.adapter_folder import AdapterFolder
from services.inference.adapters import Adapters
from services.inference.api import all_routes
from services.inference.api.hub import About
from services.inference.authentication import Access, ApiKeys, OpenAccess, RemoteTokens, read_keys
from services.inference.demonstrations import DemonstrationFolder
from services.inference.engine import Engine
from services.inference.metrics import Metrics
from services.inference.middleware import AccessLog, CancelOnDisconnect
from services.inference.preparation import Preprocessor
from services.inference.service import Classifier, Limits
from services.inference.settings import Settings

if TYPE_CHECKING:
    from services.inference.model import Item, LoadedAdapter, Scorer

log = structlog.get_logger(__name__)
TOKEN_CHECK_SECONDS = 5.0
READY = {"Readiness": {"ready": True, "checks": {"model": "ok", "adapters": "ok"}}}
METRICS = 'ifed_inference_requests_total{outcome="ok",task="sentiment"} 12.0\n'


def create_app(settings: Settings) -> FastAPI:
    """The service. It answers /livez at once, and /readyz when the model is loaded."""
    metrics = Metrics(CollectorRegistry())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as parts:
            app.state.access = await _access(settings, parts)
            loading = asyncio.create_task(_load(app, settings, parts, metrics))
            yield
            loading.cancel()
            with suppress(asyncio.CancelledError):
                await loading

    app = FastAPI(
        title="IFed-ICL inference",
        version=__version__,
        description="Classifications from one frozen language model with the adapters that organisations calibrated together.",
        lifespan=lifespan,
        # Spans go where the usual OTEL_ variables say. Logs stay out: a refused body could appear in one.
        telemetry={"auto_configure": True, "metrics": False, "logs": False, "operation_spans": False},
    )
    app.state.classifier, app.state.adapters, app.state.engine = None, None, None
    app.state.waiting_for = "loading the model"

    async def readiness() -> dict[str, str]:
        adapters: Adapters[object] | None = app.state.adapters
        engine: Engine[object] | None = app.state.engine
        stale = adapters.stale if adapters else {}
        return {
            "model": app.state.waiting_for if engine is None else "ok" if engine.alive else "the model's lane has ended",
            "adapters": f"degraded: {'; '.join(f'{task}: {why}' for task, why in sorted(stale.items()))}" if stale else "ok",
        }

    app.add_middleware(CancelOnDisconnect, tell=metrics.hung_up)
    app.add_middleware(AccessLog)
    mount(app, readiness=readiness, registry=metrics.registry, max_body_bytes=settings.max_body_bytes)
    app.include_router(all_routes())
    describe(app, READY, metrics=METRICS)
    return app


async def _access(settings: Settings, parts: AsyncExitStack) -> Access:
    """Who is let in.

    Raises:
        ValueError: the key file cannot be used.
    """
    if settings.open_access:
        return OpenAccess()
    if settings.key_file is not None:
        return ApiKeys(read_keys(await asyncio.to_thread(settings.key_file.read_text)))
    client = AggregatorClient(str(settings.aggregator_url), timeout=TOKEN_CHECK_SECONDS)
    aggregator = await parts.enter_async_context(client)

    async def whose(token: str) -> str:
        return (await aggregator.whose(token)).name

    return RemoteTokens(whose, remember=settings.token_remember_seconds, grace=settings.token_grace_seconds)


async def _load(app: FastAPI, settings: Settings, parts: AsyncExitStack, metrics: Metrics) -> None:
    """Load the model, then take requests. A model that cannot be had is told in /readyz and in the log."""
    try:
        scorer = await asyncio.to_thread(_scorer, settings)
        app.state.waiting_for = "compiling the model" if settings.compiled else "running the model for the first time"
        await asyncio.to_thread(scorer.warm_up)
        _settle()
    except IFedError as refusal:
        log.error("the model cannot be loaded", detail=refusal.detail)
        app.state.waiting_for = refusal.detail
        return
    except Exception:
        log.exception("the model cannot be loaded")
        app.state.waiting_for = "the model cannot be loaded; the service's log says why"
        return
    desk = Preprocessor(scorer, DemonstrationFolder(settings.demonstrations_folder))
    parts.push_async_callback(desk.close)
    adapters = await _adapters(settings, parts, scorer, desk, metrics)
    engine = _engine(settings, scorer, metrics)
    engine.start()
    parts.push_async_callback(engine.stop)
    metrics.watch("queue_items", "Texts that wait for the model", lambda: engine.depth)
    metrics.watch("prefix_bytes", "Bytes kept of what prompts begin with", lambda: scorer.prefixes.nbytes)
    metrics.watch_count(
        "prefix_hits", "Times that a forward pass found a beginning of its prompts kept", lambda: scorer.prefixes.hits
    )
    metrics.watch_count("prefix_misses", "Beginnings of prompts that had to be read", lambda: scorer.prefixes.misses)
    metrics.watch("tasks", "Tasks with an adapter at hand", lambda: len(adapters.current()))
    metrics.watch("adapter_bytes", "Bytes of adapters at hand", lambda: adapters.bytes_held)
    metrics.watch("stale_tasks", "Tasks whose adapter could not be refreshed", lambda: len(adapters.stale))
    app.state.adapters, app.state.engine, app.state.about = adapters, engine, _about(settings, scorer)
    app.state.classifier = Classifier(
        adapters,
        engine,
        desk,
        limits=Limits(items=settings.max_items, tokens=settings.max_request_tokens),
        default_task=settings.fallback_task,
        observer=metrics,
    )
    log.info("ready", model=scorer.identity.name, fingerprint=scorer.identity.fingerprint[:12], dtype=scorer.dtype)


def _settle() -> None:
    """Spare the garbage collector what is there by now and stays: looking through all of it stops every thread."""
    gc.collect()
    gc.freeze()


async def _adapters(
    settings: Settings, parts: AsyncExitStack, scorer: Scorer, desk: Preprocessor[LoadedAdapter, Item], metrics: Metrics
) -> Adapters[LoadedAdapter]:
    source: AggregatorClient | AdapterFolder
    if settings.adapter_folder is None:
        source = await parts.enter_async_context(AggregatorClient(str(settings.aggregator_url), settings.token()))
    else:
        source = AdapterFolder(settings.adapter_folder)
    adapters = Adapters(
        source,
        scorer.identity,
        desk.load,
        wait=settings.refresh_wait,
        max_followed=settings.max_followed if settings.adapter_folder is None else 0,
        max_bytes=settings.adapter_bytes,
        observer=metrics,
    )
    parts.push_async_callback(adapters.close)
    if isinstance(source, AdapterFolder):
        await adapters.fetch_now(settings.tasks or await asyncio.to_thread(source.tasks))
    else:
        adapters.want(settings.tasks)
    return adapters


def _engine(settings: Settings, scorer: Scorer, metrics: Metrics) -> Engine[Item]:
    return Engine(
        scorer.lanes,
        tokens=scorer.tokens,
        token_budget=scorer.token_budget,
        short_pass=scorer.short_pass,
        gather_seconds=settings.gather_seconds,
        max_queue=settings.max_queue,
        padded=scorer.padded,
        observer=metrics,
    )


def _about(settings: Settings, scorer: Scorer) -> About:
    return About(
        model_id=scorer.identity.name,
        model_sha=scorer.identity.fingerprint,
        model_dtype=scorer.dtype,
        model_int8=settings.int8,
        max_input_length=scorer.longest_prompt,
        max_batch_tokens=scorer.token_budget,
        max_client_batch_size=settings.max_items,
        max_request_tokens=settings.max_request_tokens,
        max_queue=settings.max_queue,
        version=__version__,
    )


def _scorer(settings: Settings) -> Scorer:
    from services.inference.model import Scorer  # torch takes seconds to import; a bad setting is told before

    return Scorer.load(
        settings.model,
        cache=settings.model_cache,
        device=settings.device,
        dtype=settings.dtype,
        threads=settings.threads,
        lanes=settings.lanes,
        prefix_bytes=settings.prefix_bytes,
        compiled=settings.compiled,
        int8=settings.int8,
        token_budget=settings.token_budget,
        max_tokens=settings.max_text_tokens,
        announce=lambda words: log.info("model", step=words),
    )


def _files(settings: Settings) -> None:
    """Read what the settings only name, so that what is wrong there is told at the start."""
    settings.check_folders()
    if (token := settings.token()) is not None:
        check_token(token)
    if settings.key_file is not None:
        read_keys(settings.key_file.read_text(encoding="utf-8"))


def main() -> None:
    """Entry point of `python -m services.inference.app`."""
    settings = settings_or_exit(Settings, service="the inference service", secrets=_files)
    configure(settings.log_level)
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=settings.drain_seconds,
    )


if __name__ == "__main__":
    main()
