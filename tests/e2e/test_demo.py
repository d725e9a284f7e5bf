"""The demo as a newcomer runs it, with a real language model from the package index, cut short."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.promises import setting_names


@pytest.mark.model
@pytest.mark.timeout(900)
def test_the_demo_trains_four_organisations_and_ends_with_its_figures(tmp_path: Path) -> None:
    deployment = dict.fromkeys(setting_names() - {"MODEL_CACHE"}, "of-a-deployment")  # MODEL_CACHE is an option of the demo too
    arguments = ["--exit", "--rounds", "1", "--examples", "80", "--local-steps", "6", "--folder", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "ifed.cli", "demo", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | deployment | {"COLUMNS": "120"},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "the four together" in done.stdout
    assert "curl -s http://127.0.0.1:" in done.stdout
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["rounds"] == 1
    assert summary["federated_accuracy"] >= summary["zero_shot_accuracy"] > 0.6
    assert summary["bytes_up_per_client_per_round"] < 16_000
    assert set(summary["per_organisation"]) == {"tweets", "movie-reviews", "product-reviews", "editorials"}
    kept = {path.name for path in tmp_path.rglob("*.safetensors")}
    assert kept <= {"lost.safetensors"}, "an agent forgets what was received, but not what quantisation lost"
