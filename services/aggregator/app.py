"""The aggregator's process: settings in, application out. Builds every implementation and hands it down; nothing happens on import."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import structlog
import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from ifed import logs
from ifed.startup import settings_or_exit
from ifed.web import mount
from services.aggregator.backstage import Backstage, Polls
from services.aggregator.cache import ProcessCache, RedisCache
from services.aggregator.endpoints import all_routes
from services.aggregator.metrics import Metrics
from services.aggregator.migrate import migrate
from services.aggregator.rates import Rates
from services.aggregator.repository import SqlStore, connect
from services.aggregator.service import Aggregator
from services.aggregator.settings import Settings
from services.aggregator.ticker import Ticker

log = structlog.get_logger(__name__)


def create_app(settings: Settings, *, storage: Callable[..., SqlStore] = connect) -> FastAPI:
    """The application; it connects to its database and its cache when it starts.

    Args:
        settings: everything a deployment chooses.
        storage: makes the store of a URL; tests hand in one that dies at a chosen commit.
    """
    metrics = Metrics(CollectorRegistry())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            service = await _build(settings, metrics, storage, stack)
            app.state.aggregator = service
            yield
            await service.release()

    async def readiness() -> dict[str, str]:
        service: Aggregator = app.state.aggregator
        return await service.readiness()

    app = FastAPI(
        title="IFed-ICL aggregator",
        summary="Tasks, clients, rounds and their aggregates.",
        lifespan=lifespan,
    )
    app.include_router(all_routes())
    mount(app, readiness=readiness, registry=metrics.registry, max_body_bytes=settings.max_body_bytes)
    return app


async def _build(settings: Settings, metrics: Metrics, storage: Callable[..., SqlStore], stack: AsyncExitStack) -> Aggregator:
    """Connect everything; `stack` closes it in reverse."""
    store = storage(settings.database_url, pool_size=settings.database_pool_size)
    stack.push_async_callback(store.close)
    if settings.migrates:
        await migrate(store.engine)
    cache = _cache(settings, metrics)
    await cache.open()
    stack.push_async_callback(cache.close)
    polls = Polls(cache, metrics.long_polls, recheck=settings.recheck_seconds, longest=settings.max_wait_seconds)
    ticker = Ticker(seconds=settings.tick_seconds)
    service = Aggregator(
        Backstage(store, cache, metrics, polls, ticker.nudge),
        Rates(settings.requests_per_minute, settings.redis_url, settings.redis_prefix),
        admin_token=settings.admin_token.get_secret_value(),
        claim_seconds=settings.claim_seconds,
    )
    ticker.start(service.run_due)
    stack.push_async_callback(ticker.stop)
    return service


def _cache(settings: Settings, metrics: Metrics) -> ProcessCache | RedisCache:
    if settings.redis_url is None:
        return ProcessCache(metrics, max_bytes=settings.cache_bytes)
    return RedisCache(settings.redis_url, metrics, prefix=settings.redis_prefix)


class Server(uvicorn.Server):
    """Uvicorn, which answers held requests when it is told to stop, so that it need not wait for them."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, let requests end, run the lifespan's end."""
        service: Aggregator = self._app.state.aggregator
        await service.release()
        await super().shutdown(sockets)


def serve(settings: Settings, *, storage: Callable[..., SqlStore] = connect) -> Server:
    """The server of a process, ready to run."""
    app = create_app(settings, storage=storage)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=settings.shutdown_seconds,
        ssl_certfile=settings.tls_certificate_file,
        ssl_keyfile=settings.tls_key_file,
    )
    return Server(config, app)


def main() -> None:
    """Serve until a signal comes."""
    settings = settings_or_exit(Settings, service="the aggregator")
    logs.configure(settings.log_level, json_lines=settings.log_json)
    serve(settings).run()


if __name__ == "__main__":
    main()
