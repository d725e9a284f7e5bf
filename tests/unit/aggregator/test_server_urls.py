"""The URLs that providers of Postgres and Redis hand out work, and what cannot be done is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from services.aggregator.metrics import Metrics
from services.aggregator.runtime.cache import RedisCache
from services.aggregator.runtime.rate_limit import RateLimiter
from services.aggregator.server_urls import check_redis_url, postgres_address
from services.aggregator.settings import Settings
from services.aggregator.storage.database import create_engine
from testing.factories import ADMIN_TOKEN

PLAIN = "postgresql://u:p@h:5432/d"


@pytest.mark.parametrize(
    ("url", "dsn"),
    [
        (PLAIN, PLAIN),
        ("postgres://u:p@h/d", "postgresql://u:p@h/d"),
        ("postgresql+asyncpg://u:a/b?c@h/d", "postgresql://u:a%2Fb%3Fc@h/d"),
        ("postgresql://u%40x:%2525@h/d", "postgresql://u%40x:%2525@h/d"),
        (f"{PLAIN}?sslmode=require&application_name=my+app", f"{PLAIN}?sslmode=require&application_name=my%2Bapp"),
        (f"{PLAIN}?ssl=verify-full", f"{PLAIN}?sslmode=verify-full"),
        (f"{PLAIN}?options=-csearch_path%3Dx", f"{PLAIN}?options=-csearch_path%3Dx"),
        (f"{PLAIN}?channel_binding=prefer&gssencmode=disable", PLAIN),
        ("postgresql://u@a:5432,b:5433/d?target_session_attrs=read-write",) * 2,
        ("postgresql:///d?host=/var/run/postgresql", "postgresql:///d?host=%2Fvar%2Frun%2Fpostgresql"),
        ("postgresql:///d?host=a&host=b", "postgresql:///d?host=a%2Cb"),
    ],
)
def test_the_words_of_libpq_reach_the_driver(url: str, dsn: str) -> None:
    assert postgres_address(url).dsn == dsn


@pytest.mark.parametrize(("url", "seconds"), [("?connect_timeout=5", 5.0), ("?connect_timeout=0", None), ("", None)])
def test_a_connect_timeout_is_the_drivers(url: str, seconds: float | None) -> None:
    assert postgres_address(f"{PLAIN}{url}").connect_timeout == seconds


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("sslmode=yes", "sslmode=yes is none of disable"),
        ("sslrootcert=/nowhere.pem&sslmode=verify-full", "sslrootcert=/nowhere.pem is no file"),
        ("channel_binding=require", "channel_binding=require is not supported; the driver has none"),
        ("pgbouncer=true", "set DATABASE_PREPARED_STATEMENTS=false"),
        ("search_path=x", "use options=-csearch_path"),
        ("keepalives_idle=3", "keepalives_idle is not supported"),
        ("connect_timeout=soon", "connect_timeout=soon is no whole number"),
        ("statement_cache_size=none", "statement_cache_size=none is no number"),
        ("sslmode=require&sslmode=disable", "sslmode is given 2 times"),
        ("sslmode", "no list of word=value"),
        ("port=x", "the port 'x'"),
    ],
)
def test_a_word_that_is_not_supported_is_refused_by_name_before_anything_connects(query: str, named: str) -> None:
    with pytest.raises(ValidationError, match=named) as refusal:
        Settings(database_url=f"postgresql://u:secret-word@h/d?{query}", admin_token=ADMIN_TOKEN)
    assert "secret-word" not in str(refusal.value)


@pytest.mark.parametrize("host", ["h:port", "h:99999", "a:1,b:x", "[::1"])
def test_an_address_that_is_none_is_refused(host: str) -> None:
    with pytest.raises(ValidationError, match=r"no number from 1 to 65535|malformed"):
        Settings(database_url=f"postgresql://u:p@{host}/d", admin_token=ADMIN_TOKEN)


@pytest.mark.parametrize(
    "settings",
    [
        {"database_url": PLAIN, "database_prepared_statements": False},
        {"database_url": f"{PLAIN}?sslmode=require", "database_prepared_statements": False},
        {"database_url": f"{PLAIN}?statement_cache_size=0"},
        {"database_url": f"{PLAIN}?prepared_statement_cache_size=0"},
    ],
)
def test_behind_a_pooler_no_statement_is_kept_and_reads_are_transactions(settings: dict[str, object]) -> None:
    url = Settings.model_validate({"admin_token": ADMIN_TOKEN} | settings).database_url
    engine = create_engine(url)
    assert not postgres_address(url).prepared_statements
    assert engine.get_execution_options()["ifed_reads_in_transactions"] is True
    assert create_engine(PLAIN).get_execution_options()["ifed_reads_in_transactions"] is False


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://user:p%40ss@h:6379/3",
        "rediss://:p@h:6380/0?ssl_cert_reqs=required&ssl_check_hostname=true",
        "unix:///run/redis.sock?db=2",
        "redis://[::1]:6379/0?health_check_interval=30",
    ],
)
def test_a_redis_with_users_with_tls_or_on_a_socket_is_taken(url: str) -> None:
    check_redis_url(url)
    RedisCache(url, Metrics(CollectorRegistry()))
    RateLimiter(1, url, "ifed")


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("redis+sentinel://h:26379/mymaster", "redis.sentinel:// is not supported"),
        ("redis://:secret-word@a:1,b:2/0", "several hosts"),
        ("http://h", "begins with redis://"),
        ("redis://h/main", "a number, and 'main' is none"),
        ("redis://h:port", "the port 'port'"),
        ("redis://h?ssl_cert_reqs=none", "goes with rediss://"),
        ("rediss://h?ssl_ca_certs=/nowhere.pem", "ssl_ca_certs=/nowhere.pem is no file"),
        ("redis://h?sentinel=x", "sentinel is not supported"),
        ("redis://h/0#x", "write it as %23"),
    ],
)
def test_a_redis_url_that_is_not_supported_is_refused_by_name(url: str, named: str) -> None:
    with pytest.raises(ValidationError, match=named) as refusal:
        Settings(redis_url=url, admin_token=ADMIN_TOKEN)
    assert "secret-word" not in str(refusal.value)


def test_a_certificate_file_that_exists_is_taken(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").touch()
    assert "sslrootcert=" in postgres_address(f"{PLAIN}?sslrootcert={tmp_path / 'ca.pem'}").dsn
    check_redis_url(f"rediss://h?ssl_ca_certs={tmp_path / 'ca.pem'}")
