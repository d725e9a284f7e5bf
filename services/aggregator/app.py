"""The aggregator: `python -m services.aggregator.app`. Builds the application from its settings."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

import structlog
import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from ifed.clients.webhooks import WebhookCaller
from ifed.errors import IFedError
from ifed.server import logs
from ifed.server.authentication import FailedAttempts
from ifed.server.connections import limited_protocol, possible_connections
from ifed.server.startup import StartFailure, listen_or_exit, run_or_exit, settings_or_exit, warn_of_readable_files
from ifed.server.web import describe, documentation, metrics_on_port, mount
from services.aggregator.api import all_routes
from services.aggregator.api.examples import EXAMPLES
from services.aggregator.application.dependencies import ALL_EVENTS, Dependencies
from services.aggregator.application.retention import Retention
from services.aggregator.application.services import Services, build_services
from services.aggregator.application.webhook_delivery import RetryPolicy, WebhookDispatcher
from services.aggregator.domain.events import DomainEvent
from services.aggregator.metrics import Metrics
from services.aggregator.migrate import migrate
from services.aggregator.runtime.background import PeriodicTask
from services.aggregator.runtime.cache import ProcessCache, RedisCache
from services.aggregator.runtime.long_poll import LongPoll
from services.aggregator.runtime.rate_limit import RateLimiter
from services.aggregator.settings import Settings
from services.aggregator.storage.database import Database, connect, failure_in_words, utc_now

log = structlog.get_logger(__name__)
RETENTION_SECONDS = 3600.0
SERVICE = "the aggregator"
UNEXPECTED, REFUSED = 1, 2  # exit codes
SECRET_FILES = ("admin_token_file", "database_password_file", "redis_password_file", "tls_key_file")


def create_app(settings: Settings, *, storage: Callable[..., Database] = connect) -> FastAPI:
    """Return the application, which connects to its database and its cache when it starts.

    Args:
        settings: of the deployment.
        storage: makes the database of a URL; tests pass one that fails at a chosen commit.
    """
    metrics = Metrics(CollectorRegistry())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            try:
                stack.enter_context(metrics_on_port(settings.host, settings.metrics_port, metrics.registry))
                services = await _start(settings, metrics, storage, stack)
            except Exception as reason:
                app.state.failure = await _start_failure(reason, settings)
                raise
            app.state.services = services
            yield
            await services.dependencies.long_poll.close()

    async def readiness() -> dict[str, str]:
        dependencies = app.state.services.dependencies
        return {"database": await dependencies.database.state(), "cache": await dependencies.cache.state()}

    app = FastAPI(
        title="IFed-ICL aggregator",
        summary="Tasks, clients, rounds and their aggregates.",
        lifespan=lifespan,
        **documentation(shown=settings.docs),
    )
    app.state.failure = None
    app.router.routes.extend(all_routes())
    mount(
        app,
        readiness=readiness,
        registry=metrics.registry,
        max_body_bytes=settings.max_body_bytes,
        body_seconds=settings.body_seconds,
        shows_metrics=settings.metrics_port is None,
    )
    describe(app, EXAMPLES)
    return app


async def _start(settings: Settings, metrics: Metrics, storage: Callable[..., Database], stack: AsyncExitStack) -> Services:
    """Connect to everything and start the background tasks; `stack` stops and closes them in reverse order."""
    cache = _cache(settings, metrics)
    aggregation, delivery = PeriodicTask(seconds=settings.tick_seconds), PeriodicTask(seconds=settings.tick_seconds)

    async def on_events(events: Sequence[DomainEvent]) -> None:
        for event in events:
            metrics.events.labels(event.kind.value).inc()
        delivery.wake()
        await cache.publish(ALL_EVENTS)

    database = storage(settings.database_url, pool_size=settings.database_pool_size, clock=utc_now, listener=on_events)
    stack.push_async_callback(database.close)
    if settings.migrates:
        await migrate(database.engine)
    await database.check_clock()
    await cache.open()
    stack.push_async_callback(cache.close)
    caller = WebhookCaller(timeout=settings.webhook_timeout_seconds, private=settings.webhook_private_addresses)
    stack.push_async_callback(caller.close)
    long_poll = LongPoll(
        cache,
        metrics.long_polls,
        recheck=settings.recheck_seconds,
        longest=settings.max_wait_seconds,
        most=min(settings.max_held_requests, possible_connections(settings.max_connections) * 3 // 4),
        most_of_party=settings.max_held_requests_of_party,
        readers=max(1, settings.database_pool_size // 2),
    )
    dependencies = Dependencies(database, cache, metrics, long_poll, aggregation.wake)
    services = build_services(
        dependencies,
        RateLimiter(settings.requests_per_minute, settings.redis_url, settings.redis_prefix),
        admin_token=settings.admin_token.get_secret_value(),
        failed_attempts=FailedAttempts(settings.failed_attempts_per_minute, metrics.failed_attempts),
        claim_seconds=settings.claim_seconds,
        max_additions=settings.max_additions,
        private_webhooks=settings.webhook_private_addresses,
    )
    retry = RetryPolicy(settings.webhook_timeout_seconds, settings.webhook_retry_seconds, settings.webhook_attempts)
    dispatcher = WebhookDispatcher(dependencies, caller, retry)

    async def aggregate() -> None:
        await services.worker.run_due()
        await services.access.last_seen.flush()

    aggregation.start(aggregate)
    stack.push_async_callback(aggregation.stop)
    days = settings.event_retention_days
    retention_policy = Retention(
        dependencies,
        events=None if days is None else timedelta(days=days),
        withdrawn=timedelta(days=settings.withdrawn_retention_days),
    )
    retention = PeriodicTask(seconds=RETENTION_SECONDS)
    retention.start(retention_policy.run_due)
    stack.push_async_callback(retention.stop)
    delivery.start(dispatcher.run_due)
    stack.push_async_callback(dispatcher.stop)
    stack.push_async_callback(delivery.stop)
    return services


async def _start_failure(reason: Exception, settings: Settings) -> StartFailure:
    """Return why the service cannot start; an error that nobody expected is in the log."""
    if isinstance(reason, IFedError):
        return StartFailure(reason.detail, REFUSED)
    if (words := failure_in_words(reason, settings.database_url)) is not None:
        return StartFailure(words, REFUSED)
    await log.aexception("cannot start")
    return StartFailure(f"unexpected error ({type(reason).__name__}); the log says where", UNEXPECTED)


def _cache(settings: Settings, metrics: Metrics) -> ProcessCache | RedisCache:
    if settings.redis_url is None:
        return ProcessCache(max_bytes=settings.cache_bytes)
    return RedisCache(settings.redis_url, metrics, prefix=settings.redis_prefix)


class Server(uvicorn.Server):
    """Uvicorn that answers long polls when it stops, so that it need not wait for them."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, let requests end, then end the lifespan."""
        services: Services = self._app.state.services
        await services.dependencies.long_poll.close()
        await super().shutdown(sockets)

    def start_failure(self) -> StartFailure | None:
        """Return why the service could not start; None if it has."""
        failure: StartFailure | None = self._app.state.failure
        return failure


def serve(settings: Settings, *, storage: Callable[..., Database] = connect) -> Server:
    """Return the server of a process, ready to run."""
    app = create_app(settings, storage=storage)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        ws="none",
        http=limited_protocol(max_connections=settings.max_connections, body_seconds=settings.body_seconds),
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies,
        timeout_graceful_shutdown=settings.shutdown_seconds,
        ssl_certfile=settings.tls_certificate_file,
        ssl_keyfile=settings.tls_key_file,
    )
    return Server(config, app)


def main() -> None:
    """Serve until the process gets a signal to stop."""
    settings = settings_or_exit(Settings, service=SERVICE, secrets=_check_files)
    logs.configure(settings.log_level, json_lines=settings.log_json)
    warn_of_readable_files(settings, *SECRET_FILES)
    listener = listen_or_exit(settings.host, settings.port, service=SERVICE)
    log.info("listening", address=listener.getsockname()[0], port=listener.getsockname()[1])
    server = serve(settings)
    run_or_exit(lambda: server.run(sockets=[listener]), server.start_failure, service=SERVICE)


def _check_files(settings: Settings) -> None:
    """Read the files that only a server reads, so that a wrong one is reported at the start."""
    if settings.tls_certificate_file is not None and settings.tls_key_file is not None:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(settings.tls_certificate_file, settings.tls_key_file)


if __name__ == "__main__":
    main()
