"""The aggregator's process: settings in, application out. Builds every implementation and hands it down; nothing happens on import."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import structlog
import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from ifed.clients.webhooks import WebhookCaller
from ifed.server import logs
from ifed.server.startup import settings_or_exit
from ifed.server.web import describe, mount
from services.aggregator.api import all_routes
from services.aggregator.api.examples import EXAMPLES
from services.aggregator.application.dependencies import EVERYTHING, Dependencies
from services.aggregator.application.services import Services
from services.aggregator.application.webhook_delivery import RetryPolicy, WebhookDispatcher
from services.aggregator.domain.events import DomainEvent
from services.aggregator.metrics import Metrics
from services.aggregator.migrate import migrate
from services.aggregator.runtime.background import PeriodicTask
from services.aggregator.runtime.cache import ProcessCache, RedisCache
from services.aggregator.runtime.long_poll import LongPoll
from services.aggregator.runtime.rate_limit import RateLimiter
from services.aggregator.settings import Settings
from services.aggregator.storage.database import Database, connect, utc_now

log = structlog.get_logger(__name__)


def create_app(settings: Settings, *, storage: Callable[..., Database] = connect) -> FastAPI:
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
        service: Services = app.state.aggregator
        return await service.readiness()

    app = FastAPI(
        title="IFed-ICL aggregator",
        summary="Tasks, clients, rounds and their aggregates.",
        lifespan=lifespan,
    )
    app.include_router(all_routes())
    mount(app, readiness=readiness, registry=metrics.registry, max_body_bytes=settings.max_body_bytes)
    describe(app, EXAMPLES)
    return app


async def _build(settings: Settings, metrics: Metrics, storage: Callable[..., Database], stack: AsyncExitStack) -> Services:
    """Connect everything; `stack` closes it in reverse."""
    cache = _cache(settings, metrics)
    ticker, rounds_of_post = PeriodicTask(seconds=settings.tick_seconds), PeriodicTask(seconds=settings.tick_seconds)

    async def on_events(events: Sequence[DomainEvent]) -> None:
        for event in events:
            metrics.events.labels(event.kind.value).inc()
        rounds_of_post.wake()
        await cache.publish(EVERYTHING)

    database = storage(settings.database_url, pool_size=settings.database_pool_size, clock=utc_now, listener=on_events)
    stack.push_async_callback(database.close)
    if settings.migrates:
        await migrate(database.engine)
    await cache.open()
    stack.push_async_callback(cache.close)
    caller = WebhookCaller(timeout=settings.webhook_timeout_seconds, private=settings.webhook_private_addresses)
    stack.push_async_callback(caller.close)
    long_poll = LongPoll(cache, metrics.long_polls, recheck=settings.recheck_seconds, longest=settings.max_wait_seconds)
    dependencies = Dependencies(database, cache, metrics, long_poll, ticker.wake)
    patience = RetryPolicy(settings.webhook_timeout_seconds, settings.webhook_retry_seconds, settings.webhook_attempts)
    courier = WebhookDispatcher(dependencies, caller, patience)
    service = Services(
        dependencies,
        RateLimiter(settings.requests_per_minute, settings.redis_url, settings.redis_prefix),
        admin_token=settings.admin_token.get_secret_value(),
        claim_seconds=settings.claim_seconds,
        private_webhooks=settings.webhook_private_addresses,
    )
    ticker.start(service.run_due)
    stack.push_async_callback(ticker.stop)
    rounds_of_post.start(courier.run_due)
    stack.push_async_callback(courier.stop)
    stack.push_async_callback(rounds_of_post.stop)
    return service


def _cache(settings: Settings, metrics: Metrics) -> ProcessCache | RedisCache:
    if settings.redis_url is None:
        return ProcessCache(max_bytes=settings.cache_bytes)
    return RedisCache(settings.redis_url, metrics, prefix=settings.redis_prefix)


class Server(uvicorn.Server):
    """Uvicorn, which answers held requests when it is told to stop, so that it need not wait for them."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, let requests end, run the lifespan's end."""
        service: Services = self._app.state.aggregator
        await service.release()
        await super().shutdown(sockets)


def serve(settings: Settings, *, storage: Callable[..., Database] = connect) -> Server:
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
