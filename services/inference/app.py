"""Build the inference service from its settings, and run it."""

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
from ifed.server.authentication import FailedAttempts
from ifed.server.connections import limited_protocol
from ifed.server.logs import configure
from ifed.server.startup import StartFailure, listen_or_exit, run_or_exit, settings_or_exit, warn_of_readable_files
from ifed.server.web import describe, documentation, metrics_on_port, mount
from services.inference.adapter_folder import AdapterFolder
from services.inference.adapters import AdapterCache
from services.inference.api import all_routes
from services.inference.api.hub import About
from services.inference.authentication import ApiKeys, Authenticator, OpenAccess, RemoteTokens, read_keys
from services.inference.demonstrations import DemonstrationFolder
from services.inference.engine import Engine
from services.inference.metrics import Metrics
from services.inference.middleware import AccessLog, CancelOnDisconnect
from services.inference.preparation import Preprocessor
from services.inference.service import Classifier, Limits
from services.inference.settings import Settings

if TYPE_CHECKING:
    from services.inference.model import Item, Scorer

log = structlog.get_logger(__name__)
SERVICE = "the inference service"
TOKEN_CHECK_SECONDS = 5.0
EXAMPLES = {"Readiness": {"ready": True, "checks": {"model": "ok", "adapters": "ok"}}}
METRICS_EXAMPLE = 'ifed_inference_requests_total{outcome="ok",task="sentiment"} 12.0\n'


def create_app(settings: Settings) -> FastAPI:
    """Return the application. It answers /livez at once, and /readyz with 200 once the model is loaded."""
    metrics = Metrics(CollectorRegistry())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            try:
                stack.enter_context(metrics_on_port(settings.host, settings.metrics_port, metrics.registry))
                app.state.authenticator = await _authenticator(settings, stack, metrics)
            except IFedError as refusal:
                app.state.failure = StartFailure(refusal.detail, 2)
                raise
            except Exception as reason:
                await log.aexception("cannot start")
                app.state.failure = StartFailure(f"unexpected error ({type(reason).__name__}); the log says where", 1)
                raise
            loading = asyncio.create_task(_load(app, settings, stack, metrics))
            yield
            loading.cancel()
            with suppress(asyncio.CancelledError):
                await loading

    app = FastAPI(
        title="IFed-ICL inference",
        version=__version__,
        description="Classifications from one frozen language model with the adapters that organisations calibrated together.",
        lifespan=lifespan,
        **documentation(shown=settings.docs),
        # The OTEL_ variables say where spans go. Logs are not exported: a refused body could appear in one.
        telemetry={"auto_configure": True, "metrics": False, "logs": False, "operation_spans": False},
    )
    app.state.classifier, app.state.adapters, app.state.engine = None, None, None
    app.state.failure = None
    app.state.loading_status = "loading the model"

    async def readiness() -> dict[str, str]:
        adapters: AdapterCache | None = app.state.adapters
        engine: Engine[Item] | None = app.state.engine
        stale = adapters.stale if adapters else {}
        return {
            "model": app.state.loading_status if engine is None else "ok" if engine.alive else "the engine has stopped",
            "adapters": f"degraded: {'; '.join(f'{task}: {why}' for task, why in sorted(stale.items()))}" if stale else "ok",
        }

    app.add_middleware(CancelOnDisconnect, on_disconnect=metrics.record_disconnect)
    app.add_middleware(AccessLog)
    mount(
        app,
        readiness=readiness,
        registry=metrics.registry,
        max_body_bytes=settings.max_body_bytes,
        body_seconds=settings.body_seconds,
        shows_metrics=settings.metrics_port is None,
    )
    app.router.routes.extend(all_routes())
    describe(app, EXAMPLES, metrics=METRICS_EXAMPLE)
    return app


def main() -> None:
    """Run `python -m services.inference.app`."""
    settings = settings_or_exit(Settings, service=SERVICE, secrets=_check_files)
    configure(settings.log_level)
    warn_of_readable_files(settings, "reader_token_file", "key_file")
    listener = listen_or_exit(settings.host, settings.port, service=SERVICE)
    log.info("listening", address=listener.getsockname()[0], port=listener.getsockname()[1])
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        ws="none",
        http=limited_protocol(max_connections=settings.max_connections, body_seconds=settings.body_seconds),
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies,
        timeout_graceful_shutdown=settings.drain_seconds,
    )
    run_or_exit(lambda: uvicorn.Server(config).run(sockets=[listener]), lambda: app.state.failure, service=SERVICE)


def _check_files(settings: Settings) -> None:
    """Read the files and folders that the settings name, so that a wrong one is reported at the start."""
    settings.check_folders()
    if settings.aggregator_url is not None:
        _aggregator(settings, settings.token())
    elif (token := settings.token()) is not None:
        check_token(token)
    if settings.key_file is not None:
        read_keys(settings.key_file.read_text(encoding="utf-8"))


def _aggregator(settings: Settings, token: str | None = None, *, timeout: float = 60.0) -> AggregatorClient:
    """Return a client of the aggregator.

    Raises:
        Malformed: the token, the CA file or a proxy cannot be used.
    """
    url = str(settings.aggregator_url)
    return AggregatorClient(url, token, timeout=timeout, ca_file=settings.ca_file, proxy=settings.proxy())


async def _authenticator(settings: Settings, stack: AsyncExitStack, metrics: Metrics) -> Authenticator:
    """Return the authenticator that the settings choose.

    Raises:
        ValueError: the key file is malformed.
    """
    if settings.open_access:
        return OpenAccess()
    failed_attempts = FailedAttempts(settings.failed_attempts_per_minute, metrics.failed_attempts)
    if settings.key_file is not None:
        return ApiKeys(read_keys(await asyncio.to_thread(settings.key_file.read_text)), failed_attempts)
    aggregator = await stack.enter_async_context(_aggregator(settings, timeout=TOKEN_CHECK_SECONDS))

    async def look_up(token: str) -> str:
        return (await aggregator.whose(token)).name

    return RemoteTokens(
        look_up, failed_attempts, cache_seconds=settings.token_remember_seconds, grace_seconds=settings.token_grace_seconds
    )


async def _load(app: FastAPI, settings: Settings, stack: AsyncExitStack, metrics: Metrics) -> None:
    """Load the model and start serving. A model that cannot be loaded is reported by /readyz and in the log."""
    try:
        scorer = await asyncio.to_thread(_load_scorer, settings)
        app.state.loading_status = "compiling the model" if settings.compiled else "warming up the model"
        await asyncio.to_thread(scorer.warm_up)
        await asyncio.to_thread(scorer.require_finite_scores)
        _freeze_objects()
    except IFedError as refusal:
        log.error("model not loaded", detail=refusal.detail)
        app.state.loading_status = refusal.detail
        return
    except OSError as reason:
        # such as a full disk, or a cache that is read-only
        app.state.loading_status = f"{reason.strerror or reason}: {reason.filename or ''}; MODEL and MODEL_CACHE name the files"
        log.error("model not loaded", detail=app.state.loading_status)
        return
    except Exception:
        log.exception("model not loaded")
        app.state.loading_status = "the model could not be loaded; see the service's log"
        return
    preprocessor = Preprocessor(scorer, DemonstrationFolder(settings.demonstrations_folder))
    stack.push_async_callback(preprocessor.close)
    adapters = await _adapters(settings, stack, scorer, preprocessor, metrics)
    engine = _engine(settings, scorer, metrics)
    engine.start()
    stack.push_async_callback(engine.stop)
    metrics.watch("queue_items", "Texts that wait for the model", lambda: engine.depth)
    metrics.watch("prefix_bytes", "Size of the prefix cache", lambda: scorer.prefixes.nbytes)
    metrics.watch_count("prefix_hits", "Forward passes that found a prefix in the cache", lambda: scorer.prefixes.hits)
    metrics.watch_count("prefix_misses", "Prefixes that were not in the cache and were run", lambda: scorer.prefixes.misses)
    metrics.watch("tasks", "Tasks whose adapters are cached", lambda: len(adapters.current()))
    metrics.watch("adapter_bytes", "Size of the cached adapters", lambda: adapters.nbytes)
    metrics.watch("stale_tasks", "Tasks whose adapters could not be refreshed", lambda: len(adapters.stale))
    app.state.adapters, app.state.engine, app.state.about = adapters, engine, _about(settings, scorer)
    app.state.classifier = Classifier(
        adapters,
        engine,
        preprocessor,
        limits=Limits(items=settings.max_items, tokens=settings.max_request_tokens),
        default_task=settings.fallback_task,
        metrics=metrics,
    )
    log.info("ready", model=scorer.identity.name, fingerprint=scorer.identity.fingerprint[:12], dtype=scorer.dtype)


def _load_scorer(settings: Settings) -> Scorer:
    from services.inference.model import Scorer  # importing torch takes seconds; wrong settings are reported before

    return Scorer.load(
        settings.model,
        cache=settings.model_cache,
        device=settings.device,
        dtype=settings.dtype,
        threads=settings.threads,
        replicas=settings.lanes,
        prefix_bytes=settings.prefix_bytes,
        compiled=settings.compiled,
        int8=settings.int8,
        token_budget=settings.token_budget,
        max_tokens=settings.max_text_tokens,
        announce=lambda step: log.info("loading the model", step=step),
    )


def _freeze_objects() -> None:
    """Exempt the loaded model from garbage collection, which would stop every thread to traverse it."""
    gc.collect()
    gc.freeze()


async def _adapters(
    settings: Settings, stack: AsyncExitStack, scorer: Scorer, preprocessor: Preprocessor, metrics: Metrics
) -> AdapterCache:
    source: AggregatorClient | AdapterFolder
    if settings.adapter_folder is None:
        source = await stack.enter_async_context(_aggregator(settings, settings.token()))
    else:
        source = AdapterFolder(settings.adapter_folder)
    adapters = AdapterCache(
        source,
        scorer.identity,
        preprocessor.load_adapter,
        wait=settings.refresh_wait,
        max_followed=settings.max_followed if settings.adapter_folder is None else 0,
        max_bytes=settings.adapter_bytes,
        lookups_per_minute=settings.lookups_per_minute,
        metrics=metrics,
    )
    stack.push_async_callback(adapters.close)
    if isinstance(source, AdapterFolder):
        await adapters.preload(settings.tasks or await asyncio.to_thread(source.tasks))
    else:
        adapters.follow(settings.tasks)
    return adapters


def _engine(settings: Settings, scorer: Scorer, metrics: Metrics) -> Engine[Item]:
    return Engine(
        scorer.replicas,
        tokens=scorer.tokens,
        token_budget=scorer.token_budget,
        short_pass=scorer.short_pass,
        gather_seconds=settings.gather_seconds,
        max_queue=settings.max_queue,
        padded=scorer.padded,
        metrics=metrics,
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


if __name__ == "__main__":
    main()
