"""A service that cannot answer says so on every way in, and still that it lives."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from services.inference.app import create_app
from services.inference.authentication import OpenAccess
from services.inference.settings import Settings

TENSOR = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["good"]}]}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/v1/models", None),
        ("/v1/models/a", None),
        ("/v1/classify", {"model": "a", "input": "good"}),
        ("/predict", {"inputs": "good"}),
        ("/models/a", {"inputs": "good"}),
        ("/info", None),
        ("/v2/health/ready", None),
        ("/v2/models/a", None),
        ("/v2/models/a/ready", None),
        ("/v2/models/a/versions/1/ready", None),
        ("/v2/models/a/infer", TENSOR),
        ("/v2/models/a/versions/1/infer", TENSOR),
    ],
)
async def test_where_the_lane_has_ended_every_way_in_says_so(path: str, message: dict[str, Any] | None, tmp_path: Path) -> None:
    app = create_app(Settings.model_validate({"model": "tiny", "adapter_folder": tmp_path, "open_access": True}))
    app.state.access, app.state.classifier, app.state.engine = OpenAccess(), object(), SimpleNamespace(alive=False)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as http:
        answer = await http.get(path) if message is None else await http.post(path, json=message)
        alive, ready = await http.get("/livez"), await http.get("/readyz")
    assert (answer.status_code, "its lane has ended" in answer.text) == (503, True)
    assert (alive.status_code, ready.status_code) == (200, 503)
