"""Settings from the environment: URLs made ready for their drivers, secrets without a default."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from services.aggregator.settings import Settings
from testing.factories import ADMIN_TOKEN


@pytest.fixture(autouse=True)
def only_these(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("url", "used"),
    [
        ("postgres://u:p@h/d", "postgresql+asyncpg://u:p@h/d"),
        ("postgresql://u:p@h/d", "postgresql+asyncpg://u:p@h/d"),
        ("postgresql+asyncpg://u:p@h/d", "postgresql+asyncpg://u:p@h/d"),
        ("sqlite:///ifed.db", "sqlite+aiosqlite:///ifed.db"),
        ("sqlite+aiosqlite:///ifed.db", "sqlite+aiosqlite:///ifed.db"),
    ],
)
def test_a_database_url_gets_the_driver_of_this_service(monkeypatch: pytest.MonkeyPatch, url: str, used: str) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("ADMIN_TOKEN", ADMIN_TOKEN)
    assert Settings().database_url == used


def test_a_database_of_another_kind_is_refused() -> None:
    with pytest.raises(ValidationError, match="begins with postgresql:// or sqlite://"):
        Settings(database_url="mysql://h/d", admin_token=ADMIN_TOKEN)


def test_without_an_admin_token_there_are_no_settings() -> None:
    with pytest.raises(ValidationError, match="admin_token"):
        Settings()


def test_a_short_admin_token_is_refused_without_showing_it() -> None:
    with pytest.raises(ValidationError, match="fewer than 16 characters") as refusal:
        Settings(admin_token="secret-word")
    assert "secret-word" not in str(refusal.value)


@pytest.mark.parametrize("token", ["a" * 40, "abababababababababab", "pässword-of-many-letters", "two\nlines-of-many-letters"])
def test_an_admin_token_that_is_weak_or_cannot_be_sent_is_refused_without_showing_it(token: str) -> None:
    with pytest.raises(ValidationError, match="make one with: openssl rand -hex 32") as refusal:
        Settings(admin_token=token)
    assert token not in str(refusal.value)


def test_proxies_are_addresses_or_networks() -> None:
    assert Settings(admin_token=ADMIN_TOKEN, trusted_proxies="10.0.0.0/8, ::1").trusted_proxies
    with pytest.raises(ValidationError, match="does not appear to be an IPv4 or IPv6"):
        Settings(admin_token=ADMIN_TOKEN, trusted_proxies="proxy.example")


def test_an_admin_token_may_come_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{ADMIN_TOKEN}\n")
    monkeypatch.setenv("ADMIN_TOKEN_FILE", str(tmp_path / "token"))
    assert Settings().admin_token.get_secret_value() == ADMIN_TOKEN


@pytest.mark.parametrize(
    ("server", "url", "used"),
    [
        ("database", "postgresql://ifed@db:5432/ifed", "postgresql+asyncpg://ifed:p%40ss%2Fw%3Ard@db:5432/ifed"),
        ("database", "postgres://ifed:old@db/ifed?ssl=require", "postgresql+asyncpg://ifed:p%40ss%2Fw%3Ard@db/ifed?ssl=require"),
        ("redis", "redis://cache:6379/0", "redis://:p%40ss%2Fw%3Ard@cache:6379/0"),
    ],
)
def test_a_password_may_come_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: str, url: str, used: str) -> None:
    (tmp_path / "password").write_text("p@ss/w:rd\n")
    monkeypatch.setenv(f"{server.upper()}_PASSWORD_FILE", str(tmp_path / "password"))
    monkeypatch.setenv(f"{server.upper()}_URL", url)
    assert getattr(Settings(admin_token=ADMIN_TOKEN), f"{server}_url") == used


def test_a_password_without_the_server_it_is_for_is_refused(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret-word")
    with pytest.raises(ValidationError, match="REDIS_PASSWORD_FILE goes with REDIS_URL"):
        Settings(admin_token=ADMIN_TOKEN, redis_password_file=tmp_path / "password")


@pytest.mark.parametrize("url", ["sqlite:///ifed.db", "sqlite+aiosqlite:///ifed.db"])
def test_a_password_file_for_a_sqlite_database_is_refused(tmp_path: Path, url: str) -> None:
    (tmp_path / "password").write_text("secret-word")
    with pytest.raises(ValidationError, match="unset DATABASE_PASSWORD_FILE"):
        Settings(admin_token=ADMIN_TOKEN, database_url=url, database_password_file=tmp_path / "password")


def test_a_variable_that_is_set_to_nothing_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "")
    assert Settings(admin_token=ADMIN_TOKEN).redis_url is None


@pytest.mark.parametrize(
    ("url", "wanted", "migrates"),
    [("sqlite:///x", None, True), ("postgres://h/d", None, False), ("sqlite:///x", False, False), ("postgres://h/d", True, True)],
)
def test_the_schema_is_brought_up_to_date_at_start_by_default_on_sqlite_alone(
    url: str, wanted: bool | None, migrates: bool
) -> None:
    assert Settings(database_url=url, admin_token=ADMIN_TOKEN, migrate_on_start=wanted).migrates is migrates
