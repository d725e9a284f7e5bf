"""How the database of a URL is opened."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from ifed.errors import Unavailable, WrongClock
from services.aggregator.settings import Settings
from services.aggregator.storage.database import Database, connect, utc_now
from testing.factories import ADMIN_TOKEN


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


async def run_statements(database: Database, *statements: str) -> None:
    async with database.unit_of_work() as work:
        for statement in statements:
            await work.connection.execute(text(statement))


@pytest.mark.parametrize(
    ("statements", "words"),
    [
        (
            ("CREATE TABLE x (y)", "PRAGMA max_page_count = 2", "INSERT INTO x VALUES (randomblob(100000))"),
            "database or disk is full",
        ),
        (("PRAGMA query_only = 1", "CREATE TABLE x (y)"), "attempt to write a readonly database"),
    ],
    ids=["full", "read-only"],
)
async def test_a_disk_that_cannot_be_written_is_unavailable_and_named_in_the_log(
    tmp_path: Path, statements: tuple[str, ...], words: str
) -> None:
    database = connect(f"sqlite+aiosqlite:///{tmp_path / 'ifed.sqlite3'}")
    with capture_logs() as logs, pytest.raises(Unavailable):
        await run_statements(database, *statements)
    await database.close()
    assert [entry["detail"] for entry in logs] == [words]


async def test_a_clock_a_day_off_that_of_postgres_is_refused(postgres_database: str) -> None:
    url = Settings(database_url=postgres_database, admin_token=ADMIN_TOKEN).database_url
    for offset in (timedelta(days=1), timedelta(days=-1)):
        database = connect(url, clock=lambda offset=offset: utc_now() + offset)
        with pytest.raises(WrongClock, match="set both from one time source"):
            await database.check_clock()
        await database.close()
    database = connect(url)
    await database.check_clock()
    await database.close()


async def test_a_database_that_cannot_be_reached_is_not_asked_for_its_clock() -> None:
    database = connect("postgresql+asyncpg://u@127.0.0.1:1/d")
    await database.check_clock()
    await database.close()


def modes_in(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


@pytest.mark.parametrize("earlier", [False, True], ids=["new", "of an earlier release"])
async def test_only_the_owner_can_read_a_sqlite_file_and_its_journals(tmp_path: Path, earlier: bool) -> None:
    if earlier:
        (tmp_path / "ifed.sqlite3").touch(mode=0o644)
        (tmp_path / "ifed.sqlite3-wal").touch(mode=0o644)
    database = connect(f"sqlite+aiosqlite:///{tmp_path / 'ifed.sqlite3'}")
    async with database.unit_of_work() as work:
        await work.connection.execute(text("CREATE TABLE x (y)"))
        await work.commit()
    modes = modes_in(tmp_path)
    await database.close()
    assert modes == dict.fromkeys(("ifed.sqlite3", "ifed.sqlite3-wal", "ifed.sqlite3-shm"), 0o600)
