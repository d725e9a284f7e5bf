"""Brings the schema up to date: `python -m services.aggregator.migrate`, and at start when the settings say so."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from ifed import logs
from services.aggregator.repository import connect
from services.aggregator.settings import Settings

log = structlog.get_logger(__name__)
LOCK = 0x1FED1C1


async def migrate(engine: AsyncEngine) -> None:
    """Apply what is missing in one transaction; replicas that start at once do it one after the other."""
    async with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        await connection.run_sync(upgrade)


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Run the migrations up to `revision` on a connection whose transaction is the caller's."""
    command.upgrade(configuration(connection), revision)


def configuration(connection: Connection) -> Config:
    """Alembic's configuration, without an ini file."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


async def _run(settings: Settings) -> None:
    store = connect(settings.database_url)
    try:
        await migrate(store.engine)
    finally:
        await store.close()
    await log.ainfo("the schema is up to date")


def main() -> None:
    """Bring the schema of DATABASE_URL up to date."""
    settings = Settings()
    logs.configure(settings.log_level, json_lines=settings.log_json)
    asyncio.run(_run(settings))


if __name__ == "__main__":
    main()
