"""How the database of a URL is opened."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from services.aggregator.storage.database import connect


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


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
