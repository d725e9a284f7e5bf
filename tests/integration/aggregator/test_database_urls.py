"""The database behind the URL of a provider, and behind pgbouncer in transaction mode."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
from sqlalchemy import text

from ifed.messages.enums import TaskState
from services.aggregator.storage.database import connect
from testing.servers import UNPRIVILEGED, free_port
from tests.integration.aggregator.deployment import TASK, deployed, settings


async def test_words_of_libpq_have_their_meaning_on_a_real_server(postgres_database: str) -> None:
    words = "sslmode=prefer&application_name=ifed-test&connect_timeout=9&options=-csearch_path%3Dpublic&channel_binding=prefer"
    database = connect(f"{postgres_database}?{words}")
    async with database.read_only() as work:
        shown = [(await work.connection.execute(text(f"SHOW {name}"))).scalar_one() for name in ("application_name", "search_path")]
    await database.close()
    assert shown == ["ifed-test", "public"]


@pytest.fixture
async def pooled_database(postgres_database: str, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of a database through a pgbouncer that gives each transaction one of two connections."""
    binary = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if binary is None:
        pytest.skip("needs pgbouncer on PATH, which Debian has as a package")
    server, port, configuration = urlsplit(postgres_database), free_port(), tmp_path / "pgbouncer.ini"
    configuration.write_text(
        f"""[databases]
* = host={server.hostname} port={server.port} user={server.username}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 2
"""
    )
    process = started(binary, configuration)
    url = f"postgresql://any@127.0.0.1:{port}{server.path}"
    try:
        await until_it_answers(url)
        yield url
    finally:
        process.terminate()
        process.wait(10)


def started(binary: str, configuration: Path) -> subprocess.Popen[bytes]:
    user = ["-u", UNPRIVILEGED] if os.geteuid() == 0 else []
    return subprocess.Popen([binary, "-q", *user, configuration])


async def until_it_answers(url: str) -> None:
    end = time.monotonic() + 20
    while True:
        try:
            connection = await asyncpg.connect(url, statement_cache_size=0)
        except OSError:
            assert time.monotonic() < end
            await asyncio.sleep(0.1)
        else:
            await connection.close()
            return


async def test_a_task_runs_behind_a_pooler_of_transactions_without_prepared_statements(pooled_database: str) -> None:
    configuration = settings(pooled_database, database_prepared_statements=False)
    async with deployed(configuration) as aggregator:
        await aggregator.started(clients_expected=3, rounds=2)
        clients = await aggregator.clients("a", "b", "c")
        await asyncio.gather(*(client.run() for client in clients))
        assert (await aggregator.admin.task(TASK)).state is TaskState.FINISHED
        assert [entry.client for entry in await aggregator.admin.ledger(TASK)].count("a") == 4
