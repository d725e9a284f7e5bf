"""The application runs the agent's loop and says on its status page what the agent is doing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from services.client_agent.app import create_app
from services.client_agent.settings import Settings

NOBODY = "http://127.0.0.1:1"


def settings(folder: Path, *, token: str = "token") -> Settings:
    return Settings.model_validate(
        {
            "aggregator_url": NOBODY,
            "client_token": token,
            "task": "sentiment",
            "data_file": folder / "data.jsonl",
            "state_dir": folder,
        }
    )


async def test_an_agent_without_an_aggregator_is_ready_and_retries(tmp_path: Path) -> None:
    app = create_app(settings(tmp_path))
    async with app.router.lifespan_context(app), page(app) as http:
        async with asyncio.timeout(10):
            while (status := (await http.get("/v1/status")).json())["activity"] != "retrying":
                await asyncio.sleep(0.01)
        assert (status["task"], status["contributions"]) == ("sentiment", 0)
        assert NOBODY in status["note"]
        assert (await http.get("/readyz")).json()["checks"] == {"agent": "ok"}
        assert "ifed_agent_contributions 0.0" in (await http.get("/metrics")).text


async def test_an_agent_that_cannot_take_part_is_not_ready_and_ends_with_code_1(tmp_path: Path) -> None:
    exit_code = asyncio.get_running_loop().create_future()
    app = create_app(settings(tmp_path, token="to…ken"), on_end=exit_code.set_result)
    async with app.router.lifespan_context(app), page(app) as http:
        assert await asyncio.wait_for(exit_code, 10) == 1
        readiness = await http.get("/readyz")
        assert readiness.status_code == 503
        assert "this token holds a character" in readiness.json()["checks"]["agent"]


@pytest.mark.parametrize("tokens", [{}, {"client_token": "a", "client_token_file": "b"}])
def test_settings_take_the_token_from_exactly_one_place(tmp_path: Path, tokens: dict[str, str]) -> None:
    fields = settings(tmp_path).model_dump(exclude={"client_token", "client_token_file"})
    with pytest.raises(ValueError, match="CLIENT_TOKEN or CLIENT_TOKEN_FILE"):
        Settings.model_validate(fields | tokens)


def page(app: object) -> httpx.AsyncClient:
    """An HTTP client of the agent's status page."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://agent")  # type: ignore[arg-type]
