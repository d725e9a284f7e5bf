"""The aggregator's settings, read from the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from ifed.server.startup import check_networks
from services.aggregator.server_urls import check_redis_url, postgres_address

MIN_TOKEN_LENGTH, MIN_DISTINCT_CHARACTERS = 16, 6


class Settings(BaseSettings):
    """Every setting is an environment variable of the same name in capitals."""

    model_config = SettingsConfigDict(extra="ignore", env_ignore_empty=True, frozen=True, hide_input_in_errors=True)

    # Before database_url, whose validator reads it.
    database_prepared_statements: bool = Field(
        True, description="reuse prepared statements; false behind a pooler that gives each transaction another connection"
    )
    database_url: str = Field(
        "sqlite+aiosqlite:///ifed-aggregator.sqlite3",
        description="URL of the database, sqlite:// or postgresql://; postgres:// works too",
    )
    database_password_file: Path | None = Field(
        None, description="file that contains the database's password; DATABASE_URL then names the user only"
    )
    redis_url: str | None = Field(
        None,
        description="URL of the Redis for the cache and for notifications between replicas, redis:// or rediss://; without it both stay in the process",
    )
    redis_password_file: Path | None = Field(None, description="file that contains the password for REDIS_URL")
    redis_prefix: str = Field("ifed", description="prefix of every Redis key and channel, so that deployments can share a Redis")
    admin_token: SecretStr = Field(description=f"bearer token of the admins, at least {MIN_TOKEN_LENGTH} characters")
    admin_token_file: Path | None = Field(None, description="file that contains the token, instead of ADMIN_TOKEN")
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8080, ge=0, le=65535, description="port to listen on")
    max_body_bytes: int = Field(16 * 2**20, ge=1024, description="largest request body in bytes, counted while it arrives")
    requests_per_minute: int | None = Field(
        600, ge=1, description="calls that a client or reader may make in a minute; more are refused with 429"
    )
    failed_attempts_per_minute: int = Field(
        60,
        ge=1,
        description="wrong tokens and enrolment codes that an address may send in a minute to a replica; then only tokens that it accepted before are checked",
    )
    trusted_proxies: str = Field(
        "",
        description="addresses or networks of proxies, comma-separated, whose X-Forwarded-For names the caller; without them the connection does",
    )
    metrics_port: int | None = Field(
        None, ge=1, le=65535, description="port that serves /metrics, instead of PORT, for a network that callers do not reach"
    )
    docs: bool = Field(True, description="serve /docs, /redoc and /openapi.json, which describe every route to anybody")
    body_seconds: float = Field(60.0, gt=0, description="seconds that a request body may take to arrive")
    max_connections: int = Field(
        4096,
        ge=16,
        description="open connections, fewer where the process may open fewer files; beyond them the oldest idle one is closed",
    )
    tls_certificate_file: Path | None = Field(
        None, description="certificate chain in PEM format; with it and its key the service uses HTTPS"
    )
    tls_key_file: Path | None = Field(None, description="private key of the certificate in PEM format")
    max_wait_seconds: float = Field(60.0, gt=0, description="longest duration of a long poll")
    max_held_requests: int = Field(
        2000,
        ge=1,
        description="long polls and event streams of a replica, at most three quarters of its connections; beyond them the oldest is answered early",
    )
    max_held_requests_of_party: int = Field(
        300,
        ge=1,
        description="long polls or event streams of one party in a replica; an inference service has one for each task it follows",
    )
    recheck_seconds: float = Field(
        2.0, gt=0, description="seconds after which a long poll reads the database without a notification"
    )
    tick_seconds: float = Field(
        0.5, gt=0, description="seconds between two checks for deadlines, due webhooks and interrupted aggregations"
    )
    claim_seconds: float = Field(
        15.0, gt=0, description="seconds of the lease of a replica that aggregates; afterwards another one may take over"
    )
    webhook_timeout_seconds: float = Field(10.0, gt=0, le=300, description="seconds that a webhook's receiver may take to answer")
    webhook_retry_seconds: float = Field(
        5.0,
        gt=0,
        description="seconds before a failed webhook delivery is retried; four times as long after each further failure, at most a day",
    )
    webhook_attempts: int = Field(10, ge=1, le=100, description="attempts after which a webhook delivery is given up")
    webhook_private_addresses: bool = Field(
        False, description="allow webhooks to this machine and to private networks; admins can then send requests there"
    )
    max_additions: int = Field(
        1000, ge=1, description="additions to the context vector of a task that one client may send; more are refused with 409"
    )
    withdrawn_retention_days: float = Field(
        30.0,
        ge=0,
        le=36_500,
        description="days after a client's withdrawal from a task at which its context vectors and its answers for label heads are deleted; earlier versions of both can then no longer be proven",
    )
    event_retention_days: float | None = Field(
        None, gt=0, le=36_500, description="days after which events are deleted with their deliveries; kept for ever when not set"
    )
    migrate_on_start: bool | None = Field(None, description="migrate the schema at start; by default only on SQLite")
    database_pool_size: int = Field(20, ge=1, description="largest number of Postgres connections; they stay open")
    cache_bytes: int = Field(64 * 2**20, ge=0, description="size of the cache in the process, without Redis")
    shutdown_seconds: int = Field(10, ge=1, description="seconds that open requests have when the service stops")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="lowest level of log record shown")
    log_json: bool | None = Field(None, description="log one JSON object per line; by default when not on a terminal")

    @model_validator(mode="before")
    @classmethod
    def _token_from_file(cls, values: dict[str, Any]) -> dict[str, Any]:
        if path := values.get("admin_token_file"):
            values["admin_token"] = Path(path).read_text(encoding="utf-8").strip()
        return values

    @model_validator(mode="before")
    @classmethod
    def _passwords_from_files(cls, values: dict[str, Any]) -> dict[str, Any]:
        for server in ("database", "redis"):
            if path := values.get(f"{server}_password_file"):
                if not values.get(f"{server}_url"):
                    raise ValueError(f"{server.upper()}_PASSWORD_FILE goes with {server.upper()}_URL; set both")
                if str(values[f"{server}_url"]).startswith("sqlite"):
                    raise ValueError(
                        "a SQLite file has no password; unset DATABASE_PASSWORD_FILE, or set DATABASE_URL to a Postgres"
                    )
                values[f"{server}_url"] = _with_password(
                    str(values[f"{server}_url"]), Path(path).read_text(encoding="utf-8").strip()
                )
        return values

    @field_validator("database_url")
    @classmethod
    def _with_async_driver(cls, url: str, info: ValidationInfo) -> str:
        """Return the URL with the driver that this service uses, and the word that turns prepared statements off."""
        for plain in ("postgres://", "postgresql://"):
            url = f"postgresql+asyncpg://{url.removeprefix(plain)}" if url.startswith(plain) else url
        if url.startswith("sqlite://"):
            url = f"sqlite+aiosqlite{url.removeprefix('sqlite')}"
        if not url.startswith(("postgresql+asyncpg://", "sqlite+aiosqlite://")):
            raise ValueError("a database URL begins with postgresql:// or sqlite://")
        if (
            url.startswith("postgresql")
            and postgres_address(url).prepared_statements
            and not info.data["database_prepared_statements"]
        ):
            url += f"{'&' if '?' in url else '?'}prepared_statement_cache_size=0"
        return url

    @field_validator("redis_url")
    @classmethod
    def _redis_is_supported(cls, url: str | None) -> str | None:
        if url is not None:
            check_redis_url(url)
        return url

    @model_validator(mode="after")
    def _token_is_strong(self) -> Self:
        token = self.admin_token.get_secret_value()
        advice = "make one with: openssl rand -hex 32"
        if len(token) < MIN_TOKEN_LENGTH:
            raise ValueError(f"the admin token has fewer than {MIN_TOKEN_LENGTH} characters; {advice}")
        if len(set(token)) < MIN_DISTINCT_CHARACTERS:
            raise ValueError(f"the admin token has fewer than {MIN_DISTINCT_CHARACTERS} different characters; {advice}")
        if not (token.isascii() and token.isprintable()):
            raise ValueError(f"the admin token has characters beyond printable ASCII, which no request can send; {advice}")
        return self

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, networks: str) -> str:
        return check_networks(networks)

    @model_validator(mode="after")
    def _both_halves_of_tls(self) -> Self:
        if (self.tls_certificate_file is None) is not (self.tls_key_file is None):
            raise ValueError("TLS_CERTIFICATE_FILE and TLS_KEY_FILE go together; set both or neither")
        return self

    @property
    def migrates(self) -> bool:
        """Whether to bring the schema up to date at start."""
        return self.database_url.startswith("sqlite") if self.migrate_on_start is None else self.migrate_on_start


def _with_password(url: str, password: str) -> str:
    """Return `url` with the password after its user, escaped."""
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}:{quote(password, safe='')}@{host}"))
