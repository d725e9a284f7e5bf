"""Bring the database schema up to date, or wait until it is: `python -m services.aggregator.migrate`."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from ifed.server import logs
from ifed.server.startup import settings_or_exit
from services.aggregator.settings import Settings
from services.aggregator.storage.database import connect, failure_in_words

log = structlog.get_logger(__name__)
SERVICE = "the migration"
ADVISORY_LOCK = 0x1FED1C1
POLL_SECONDS = 1.0


async def migrate(engine: AsyncEngine) -> None:
    """Apply the missing migrations in one transaction; replicas that start at the same time do it one after the other."""
    async with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": ADVISORY_LOCK})
        await connection.run_sync(upgrade)


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Run the migrations up to `revision`, in the caller's transaction."""
    command.upgrade(configuration(connection), revision)


def configuration(connection: Connection) -> Config:
    """Return the configuration of Alembic, which needs no ini file."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def is_current(connection: Connection) -> bool:
    """Return whether every migration of this release is applied. The schema of a later release counts as current."""
    scripts = ScriptDirectory.from_config(configuration(connection))
    applied = set(MigrationContext.configure(connection).get_current_heads())
    known = {script.revision for script in scripts.walk_revisions()}
    return bool(applied) and (applied == set(scripts.get_heads()) or not applied <= known)


async def wait(engine: AsyncEngine, *, seconds: float) -> bool:
    """Poll until the schema is current; return False when it is not within `seconds`, also when the database cannot be reached."""
    end = asyncio.get_running_loop().time() + seconds
    while True:
        try:
            async with engine.connect() as connection:
                if await connection.run_sync(is_current):
                    return True
        except (OSError, SQLAlchemyError) as reason:
            await log.ainfo("the database cannot be reached", reason=type(reason).__name__)
        if asyncio.get_running_loop().time() >= end:
            return False
        await asyncio.sleep(POLL_SECONDS)


async def _waited(settings: Settings, seconds: float) -> bool:
    database = connect(settings.database_url)
    try:
        return await wait(database.engine, seconds=seconds)
    finally:
        await database.close()


async def _run(settings: Settings) -> None:
    database = connect(settings.database_url)
    try:
        await migrate(database.engine)
    finally:
        await database.close()
    await log.ainfo("the schema is up to date")


def main() -> None:
    """Bring the schema of DATABASE_URL up to date, or wait until it is."""
    parser = argparse.ArgumentParser(prog="python -m services.aggregator.migrate", description="Bring the schema up to date.")
    parser.add_argument(
        "--wait", type=float, metavar="SECONDS", help="change nothing; wait so long until another process has done it"
    )
    options = parser.parse_args()
    settings = settings_or_exit(Settings, service=SERVICE)
    logs.configure(settings.log_level, json_lines=settings.log_json)
    if options.wait is None:
        try:
            asyncio.run(_run(settings))
        except Exception as reason:
            if (words := failure_in_words(reason, settings.database_url)) is None:
                raise
            sys.stderr.write(f"{SERVICE}: {words}\n")
            sys.exit(2)
    elif not asyncio.run(_waited(settings, options.wait)):
        sys.exit(f"the schema was not up to date after {options.wait:.0f} s; run python -m services.aggregator.migrate")


if __name__ == "__main__":
    main()
